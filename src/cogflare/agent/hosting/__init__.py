"""Serves one Python function, or one RunPod handler, over Cog's HTTP API; a program of its own, standard library only.

    boot, the front (it never runs the model's code)         boot again, the model's process
      app     HTTP: health, schema, runs, streams              work        turns (one by one), or tasks (several)
      front   the model's setup and health                     functions   type hints → schema and values
      runs    what each run has said; their owner              handlers    RunPod's handler file
      hooks   tells of a run's end                             files       inputs fetched, outputs uploaded
      child ◀──────────── frames over a socket ────────────▶   capture     prints → logs

It runs in the interpreter of the model (Python 3.10 or later), which need not have any of Cogflare's packages.
"""
