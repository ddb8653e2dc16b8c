"""k2rl: an RL post-training gym. Importing it registers the installed environments with gymnasium, so that
`gymnasium.make("k2rl/math-v0")` works (gymnasium itself loads no entry points)."""

from k2rl.env import Env, SingleTurnEnv, UnicodeText
from k2rl.plugins import register_gymnasium
from k2rl.types import Message, Split, Status, Task, Verdict

__all__ = ["Env", "Message", "SingleTurnEnv", "Split", "Status", "Task", "UnicodeText", "Verdict"]
__version__ = "0.1.0"

register_gymnasium()
