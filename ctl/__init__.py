"""jobctl: the client of jobd, for people and for shell scripts."""
