"""`tools/crash`: kills daemons, simulates power loss, and checks that no promise was broken."""
