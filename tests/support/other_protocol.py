"""A server or worker of another day: `cogflare` with another range of protocols. A process of its own.

python -m support.other_protocol OLDEST NEWEST MODULE [ARGUMENT …]
"""

import runpy
import sys

from cogflare.protocol import messages

# Before anything else takes the numbers from there.
messages.OLDEST, messages.PROTOCOL = int(sys.argv[1]), int(sys.argv[2])
sys.argv = sys.argv[3:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
