"""`tools/crash`: kills a daemon again and again, takes its power away, and proves what it promised."""
