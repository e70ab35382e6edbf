"""Tests that an installation can run on itself, on the machine and the filesystem that it will be used on."""
