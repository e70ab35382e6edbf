"""Where results lie: Parquet tables in folders or object storage, leases on runs, what a reader keeps. Knows no science."""
