"""Ray itself: its processes, its versions, a session of our own, the watch over it."""
