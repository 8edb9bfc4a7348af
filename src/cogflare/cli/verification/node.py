"""A server node whose wall clock can be made to jump: `cogflare serve` around another clock. A process of its own.

python -m cogflare.cli.verification.node PARENT_PID READY_FILE OFFSET_FILE; its settings come from the environment.
"""

import sys
from pathlib import Path

from cogflare.cli.serve import host
from cogflare.cli.verification.clock import JumpingClock
from cogflare.cli.verification.process import tie_to_parent
from cogflare.settings import load

if __name__ == "__main__":
    tie_to_parent(int(sys.argv[1]))
    host(load(), sys.argv[2], JumpingClock(Path(sys.argv[3])))
