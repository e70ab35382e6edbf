"""Where results lie: Parquet tables in a folder or object storage, leases on runs, readers' copies; no science."""
