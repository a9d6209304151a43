"""The pure core: no file, socket, process, clock or randomness. Time is an argument."""
