"""What this process has of the machine: processors, memory, threads, signals."""
