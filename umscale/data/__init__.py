"""Corpora: text in, token shards and a manifest on disk, training and validation windows out."""
