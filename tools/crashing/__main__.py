"""`tools/crash`."""
import json, sys, tempfile, time
from pathlib import Path
from tools.crashing.killing import Killing
from tools.crashing.lives import ForkServer
if __name__ == "__main__":
    start=time.monotonic()
    with ForkServer() as forks:
        t=tempfile.mkdtemp()
        print(t, time.monotonic()-start)
        last=[time.monotonic()]
        def tell(way):
            now=time.monotonic(); print(way, round(now-last[0],2), flush=True); last[0]=now
        k=Killing(Path(t),1,forks).run(int(sys.argv[1]), tell)
        print(k, time.monotonic()-last[0])
        print(time.monotonic()-start)
