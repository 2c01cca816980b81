"""What any floor may use: worker threads, fsync, failpoints, addresses, and the wording of errors."""
