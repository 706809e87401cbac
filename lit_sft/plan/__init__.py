"""What a run will take, in memory and in time, before it is started."""
