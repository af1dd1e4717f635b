"""What every room stands on; nothing here knows the others: errors, files, devices, random numbers, processes."""
