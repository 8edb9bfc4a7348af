"""The benchmark: a real server and a real agent in processes of their own, under load from this one."""
