"""Code that tries to get out of a sandbox, or to use more than it may; shared by the tests and the benchmark.

A case that succeeds leaves a trace: it prints the secret or ESCAPED, touches the bait folder, or reaches the listener.
"""

# Each line of code is its own: breaking it up would hide what it does.
# ruff: noqa: E501, ERA001

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from nearfar.agents.types import CodeLimits, CodeResult, CodeRunner

SECRET = "swordfish-4711"
LIMITS = CodeLimits(seconds=0.4, memory_bytes=32 * 2**20, recursion=100, output_characters=4_000, calls=20)


@dataclass(frozen=True, slots=True)
class Attack:
    """A piece of code, and whether it must be stopped (a bomb) or may end as it likes (nothing got out)."""

    family: str
    name: str
    code: str
    must_stop: bool = False


@dataclass(frozen=True, slots=True)
class Bait:
    """What attacks go for: a folder with a secret, a listener on TCP and one on an abstract Unix socket."""

    folder: Path
    port: int
    abstract: str
    visits: list[str]

    def code_of(self, attack: Attack) -> str:
        """The code, with the bait's names in it."""
        names = {
            "SECRET_FILE": self.folder / "secret.txt",
            "FOLDER": self.folder,
            "PORT": self.port,
            "ABSTRACT": self.abstract,
        }
        code = attack.code
        for name, value in names.items():
            code = code.replace(f"@{name}@", str(value))
        return code

    def traces(self, result: CodeResult) -> list[str]:
        """What got out; empty: nothing."""
        told = f"{result.value!r} {result.output} {result.error}"
        found = [word for word in (SECRET, "ESCAPED") if word in told]
        found += self.visits
        try:
            json.dumps(result.value, allow_nan=False)
        except ValueError:
            found.append("a value that JSON has not")
        if sorted(each.name for each in self.folder.iterdir()) != ["secret.txt"]:
            found.append("the folder changed")
        if (self.folder / "secret.txt").read_text() != SECRET:
            found.append("the secret changed")
        return found


@asynccontextmanager
async def laid_out(folder: Path) -> AsyncIterator[Bait]:
    """The bait, in an empty folder."""
    (folder / "secret.txt").write_text(SECRET)
    visits: list[str] = []

    async def visited(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append("somebody connected")
        writer.write(SECRET.encode())
        writer.close()

    abstract = f"nearfar-bait-{os.getpid()}-{os.urandom(4).hex()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{abstract}")
    listener.listen()
    tcp = await asyncio.start_server(visited, "127.0.0.1", 0)
    unix = await asyncio.start_unix_server(visited, sock=listener)
    async with tcp, unix:
        yield Bait(folder, tcp.sockets[0].getsockname()[1], abstract, visits)


def lookup(name: str) -> str:
    """A granted function of a module that holds the secret."""
    return f"no entry for {name!r}"


async def attempt(runner: CodeRunner, attack: Attack, bait: Bait) -> tuple[CodeResult, list[str]]:
    """The result, and what got out."""
    result = await runner.run(bait.code_of(attack), functions={"lookup": lookup}, limits=LIMITS)
    return result, bait.traces(result)


_WALK = "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"

_DOUBLED = "x = []\nfor _ in range(60): x = [x, x]"

ATTACKS = [
    # --- files
    Attack("file", "open", "print(open('@SECRET_FILE@').read())"),
    Attack("file", "open by descriptor", "import os\nprint(os.read(os.open('@SECRET_FILE@', os.O_RDONLY), 99))"),
    Attack("file", "pathlib", "from pathlib import Path\nprint(Path('@SECRET_FILE@').read_text())"),
    Attack("file", "io", "import io\nprint(io.open('@SECRET_FILE@', 'rb').read())"),
    Attack("file", "codecs", "import codecs\nprint(codecs.open('@SECRET_FILE@').read())"),
    Attack("file", "linecache", "import linecache\nprint(linecache.getlines('@SECRET_FILE@'))"),
    Attack(
        "file",
        "source loader",
        "import importlib.machinery as m\nprint(m.SourceFileLoader('x', '@SECRET_FILE@').get_data('@SECRET_FILE@'))",
    ),
    Attack("file", "link to it", "import os\nos.symlink('@SECRET_FILE@', '/tmp/l')\nprint(open('/tmp/l').read())"),
    Attack("file", "dots", "print(open('../../../../../../../..@SECRET_FILE@').read())"),
    Attack("file", "write", "open('@FOLDER@/new.txt', 'w').write('x')"),
    Attack("file", "overwrite", "open('@SECRET_FILE@', 'w').write('x')"),
    Attack("file", "delete", "import os\nos.remove('@SECRET_FILE@')"),
    Attack("file", "rename", "import os\nos.rename('@SECRET_FILE@', '@FOLDER@/other')"),
    Attack("file", "list", "import os\nprint('ESCAPED' if 'secret.txt' in os.listdir('@FOLDER@') else '')"),
    Attack("file", "glob", "import glob\nprint('ESCAPED' if glob.glob('@FOLDER@/*') else '')"),
    Attack("file", "passwd", "t = open('/etc/passwd').read()\nprint('ESCAPED' if 'root:' in t else '')"),
    Attack("file", "home", "import os\nt = os.listdir(os.path.expanduser('~'))\nprint('ESCAPED' if t else '')"),
    Attack("file", "root's home", "import os\nt = os.listdir('/root')\nprint('ESCAPED')"),
    Attack(
        "file",
        "environment",
        "import os\nt = dict(os.environ)\nprint(t)\nprint('ESCAPED' if 'NEARFAR_BAIT' in t else '')",
    ),
    Attack("file", "proc environ", "t = open('/proc/self/environ').read() + open('/proc/1/environ').read()\nprint(t)"),
    Attack("file", "proc root", "print(open('/proc/1/root@SECRET_FILE@').read())"),
    Attack("file", "write the system", "open('/usr/lib/x', 'w').write('x')\nprint('ESCAPED')"),
    Attack("file", "write the interpreter", "import os\nopen(os.__file__, 'a').write('x')\nprint('ESCAPED')"),
    Attack(
        "file",
        "mount",
        "import ctypes\nc = ctypes.CDLL(None)\nif c.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0: print('ESCAPED')",
    ),
    Attack("file", "chroot", "import os\nos.mkdir('/tmp/c')\nos.chroot('/tmp/c')\nprint('ESCAPED')"),
    Attack("file", "device", "import os\nos.mknod('/tmp/d', 0o60600, os.makedev(259, 0))\nprint('ESCAPED')"),
    Attack("file", "wide letters", "print(ｏｐｅｎ('@SECRET_FILE@').read())"),
    Attack("file", "hidden by an encoding", "# -*- coding: utf-7 -*-\nprint(+AG8AcABlAG4-('@SECRET_FILE@').read())"),
    # --- network
    Attack(
        "network", "tcp", "import socket\ns = socket.create_connection(('127.0.0.1', @PORT@), 1)\nprint(s.recv(99))"
    ),
    Attack(
        "network",
        "abstract unix",
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0@ABSTRACT@')\nprint(s.recv(99))",
    ),
    Attack(
        "network", "urllib", "import urllib.request as u\nprint(u.urlopen('http://127.0.0.1:@PORT@', timeout=1).read())"
    ),
    Attack(
        "network",
        "http.client",
        "import http.client as h\nc = h.HTTPConnection('127.0.0.1', @PORT@, timeout=1)\nc.request('GET', '/')\nprint(c.getresponse().read())",
    ),
    Attack(
        "network",
        "asyncio",
        "import asyncio\nasync def go():\n    r, w = await asyncio.open_connection('127.0.0.1', @PORT@)\n    print(await r.read())\nasyncio.run(go())",
    ),
    Attack(
        "network",
        "ipv6",
        "import socket\ns = socket.socket(socket.AF_INET6)\ns.connect(('::ffff:127.0.0.1', @PORT@))\nprint(s.recv(99))",
    ),
    Attack(
        "network",
        "raw",
        "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))\nprint('ESCAPED')",
    ),
    Attack(
        "network",
        "interfaces",
        "import socket\nt = [n for _, n in socket.if_nameindex() if n != 'lo']\nprint('ESCAPED' if t else '')",
    ),
    Attack(
        "network", "name", "import socket\nprint('ESCAPED' if socket.gethostbyname('localhost.localdomain') else '')"
    ),
    Attack(
        "network",
        "the virtual machine's host",
        "import socket\ns = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\nprint('ESCAPED')\ns.connect((2, 1024))",
    ),
    Attack(
        "network", "the kernel", "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\nprint('ESCAPED')"
    ),
    Attack(
        "network",
        "through libc",
        "import ctypes\nif ctypes.CDLL(None).syscall(41, 1, 1, 0) >= 0: print('ESCAPED')",
    ),
    # --- processes
    Attack("process", "fork", "import os\nif os.fork() == 0: os._exit(0)\nprint('ESCAPED')"),
    Attack(
        "process",
        "fork bomb",
        "import os\nwhile True:\n    try:\n        os.fork()\n        print('ESCAPED')\n    except OSError: pass",
        True,
    ),
    Attack("process", "system", "import os\nprint('ESCAPED' if os.system('touch @FOLDER@/x') == 0 else '')"),
    Attack(
        "process", "subprocess", "import subprocess\nsubprocess.run(['/bin/echo', 'hi'], check=True)\nprint('ESCAPED')"
    ),
    Attack("process", "popen", "import os\nprint(os.popen('cat @SECRET_FILE@').read())"),
    Attack("process", "spawn", "import os\nos.posix_spawn('/bin/true', ['true'], {})\nprint('ESCAPED')"),
    Attack("process", "exec", "import os\nos.execv('/bin/cat', ['cat', '@SECRET_FILE@'])"),
    Attack(
        "process",
        "exec itself",
        "import os, sys\nos.execv(sys.executable, ['python', '-c', 'print(open(\"@SECRET_FILE@\").read())'])",
    ),
    Attack(
        "process", "multiprocessing", "import multiprocessing as m\nm.Process(target=print).start()\nprint('ESCAPED')"
    ),
    Attack("process", "thread", "import threading\nthreading.Thread(target=print, args=('ESCAPED',)).start()"),
    Attack("process", "kill everybody", "import os\nos.kill(-1, 9)"),
    Attack("process", "kill the host", f"import os\nos.kill({os.getpid()}, 9)"),
    Attack("process", "setuid", "import os\nos.setuid(0)\nprint('ESCAPED')"),
    Attack("process", "unshare", "import ctypes\nif ctypes.CDLL(None).unshare(0x00020000) == 0: print('ESCAPED')"),
    Attack(
        "process",
        "user namespace",
        "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) == 0: print('ESCAPED')",
    ),
    Attack(
        "process",
        "ptrace",
        f"import ctypes\nif ctypes.CDLL(None).ptrace(16, {os.getpid()}, 0, 0) == 0: print('ESCAPED')",
    ),
    Attack(
        "process",
        "raise limits",
        "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (9, 9))\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nprint('ESCAPED')",
    ),
    Attack(
        "process",
        "clone into a namespace",
        "import ctypes\nc = ctypes.CDLL(None)\nr = c.syscall(56, 0x10000011, 0, 0, 0, 0)\nif r == 0: c._exit(0)\nif r > 0: print('ESCAPED')",
    ),
    Attack(
        "process",
        "clone3",
        "import ctypes, struct\nc = ctypes.CDLL(None)\nr = c.syscall(435, struct.pack('=8Q', 1 << 28, 0, 0, 0, 17, 0, 0, 0), 64)\nif r == 0: c._exit(0)\nif r > 0: print('ESCAPED')",
    ),
    Attack(
        "process",
        "the reaper's memory",
        "import ctypes\nb = ctypes.create_string_buffer(64)\nv = (ctypes.c_void_p * 2)(ctypes.addressof(b), 1)\n"
        "if ctypes.CDLL(None).syscall(310, 1, v, 1, v, 1, 0) >= 0: print('ESCAPED')",
    ),
    Attack("process", "stop itself", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass", True),
    Attack("process", "kill the reaper", "import os\nos.kill(1, 15)\nos.kill(1, 9)"),
    Attack("process", "crash", "import ctypes\nctypes.string_at(0)"),
    Attack("process", "exit", "import os\nos._exit(0)"),
    # --- memory
    Attack("memory", "list", "x = []\nwhile True: x.append([0] * 10_000)", True),
    Attack("memory", "text", "x = 'a'\nwhile True: x += x", True),
    Attack("memory", "repeat", "x = [0] * 10**10", True),
    Attack("memory", "bytes", "x = bytes(10**9)", True),
    Attack("memory", "dict", "x = {}\nwhile True: x[len(x)] = 'a' * 1000", True),
    Attack("memory", "set", "x = set()\nwhile True: x.add(str(len(x)) * 500)", True),
    Attack("memory", "int", "x = 1 << 10**10", True),
    Attack("memory", "power", "x = 9 ** 10**9", True),
    Attack("memory", "format", "x = f'{1:>1000000000}'", True),
    Attack("memory", "percent", "x = '%1000000000d' % 1", True),
    Attack("memory", "justify", "x = 'a'.ljust(10**9)", True),
    Attack("memory", "replace", "x = ('a' * 10**6).replace('a', 'b' * 10**4)", True),
    Attack("memory", "join", "x = ('b' * 10**4).join('a' * 10**6)", True),
    Attack("memory", "nest", "x = []\nwhile True: x = [x, 'a' * 1000]", True),
    Attack("memory", "map", "import mmap\nx = mmap.mmap(-1, 10**9)\nx.write(b'a' * 10**9)", True),
    Attack(
        "memory", "scratch", "for i in range(100): open(f'/tmp/{i}', 'wb').write(b'a' * 10**6)\nprint('ESCAPED')", True
    ),
    Attack(
        "memory",
        "shared",
        "for i in range(100): open(f'/dev/shm/{i}', 'wb').write(b'a' * 10**6)\nprint('ESCAPED')",
        True,
    ),
    Attack(
        "memory",
        "root file system",
        "for i in range(100): open(f'/{i}', 'wb').write(b'a' * 10**6)\nprint('ESCAPED')",
        True,
    ),
    Attack(
        "memory", "descriptors", "import os\nx = [os.open('/dev/null', 0) for _ in range(5000)]\nprint('ESCAPED')", True
    ),
    Attack(
        "memory", "catch it", "x = []\nwhile True:\n    try: x.append('a' * 10**6)\n    except MemoryError: pass", True
    ),
    Attack(
        "memory",
        "tmpfs in a namespace of its own",
        "import ctypes, os\nc = ctypes.CDLL(None)\nif c.unshare(0x10020000) == 0:\n    os.mkdir('/tmp/m')\n    c.mount(b't', b'/tmp/m', b'tmpfs', 0, None)\n"
        "    for i in range(64): open(f'/tmp/m/{i}', 'wb').write(b'a' * 10**6)\n    print('ESCAPED')",
    ),
    Attack(
        "memory",
        "memfd",
        "import os\nfor i in range(20): os.write(os.memfd_create(str(i)), b'a' * 10**6)\nprint('ESCAPED')",
        True,
    ),
    Attack(
        "memory",
        "System V",
        "import ctypes\nif ctypes.CDLL(None).shmget(0, 10**8, 0o1600) >= 0: print('ESCAPED')",
    ),
    Attack(
        "memory",
        "attributes of a file",
        "import os\nopen('/tmp/f', 'w')\nfor i in range(1000): os.setxattr('/tmp/f', f'user.{i}', b'a' * 60_000)\nprint('ESCAPED')",
        True,
    ),
    Attack(
        "memory",
        "pipes in flight",
        "import array, fcntl, os, socket\na, b = socket.socketpair()\nfor _ in range(33):\n    r, w = os.pipe()\n"
        "    fcntl.fcntl(w, 1031, 1 << 20)\n    os.write(w, b'a' * (1 << 20))\n"
        "    a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [r]))])\n    os.close(r)\n    os.close(w)\nprint('ESCAPED')",
        True,
    ),
    Attack("memory", "join what is made", "x = ','.join(map(str, range(10**9)))", True),
    Attack("memory", "capitals", "x = 'ß' * 10**7\nwhile True: x += x.upper()", True),
    # --- time
    Attack("time", "loop", "while True: pass", True),
    Attack(
        "time",
        "catch everything",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        True,
    ),
    Attack("time", "sum", "sum(range(10**12))", True),
    Attack("time", "one long operation", "x = 7 ** 3_000_000 % 11\nwhile True: x = 7 ** 3_000_000", True),
    Attack("time", "digits", "while True: x = int('9' * 4000) ** 20", True),
    Attack("time", "comparison", "x = [0] * 10**5\nwhile True: x == x[:]", True),
    Attack("time", "regex", "import re\nwhile True: re.match(r'(a|aa)+$', 'a' * 45 + 'b')", True),
    Attack("time", "recursion in two", "def f(n):\n    return f(n - 1) + f(n - 1) if n else 1\nf(60)", True),
    Attack("time", "comparing itself", "class A:\n    def __eq__(self, other): return self == other\nA() == 1", True),
    Attack(
        "time",
        "ignore signals",
        "import signal\nfor s in (2, 14, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        True,
    ),
    Attack("time", "root", "import math\nwhile True: x = math.isqrt(10**400_000)", True),
    Attack("time", "search", "x = 'a' * 10**6\nwhile True: x.count('a' * 300_000 + 'b')", True),
    Attack("time", "equal hashes", "d = {}\nfor i in range(10**7): d[i * (2**61 - 1)] = 1", True),
    Attack("time", "doubled classes", "x = int\nfor _ in range(60): x = (x, x)\nisinstance('a', x)", True),
    Attack("time", "never finally", "while True:\n    try: raise SystemExit\n    finally: continue", True),
    Attack("time", "a list that grows", "x = [1]\nfor i in x: x.append(i); x.pop(0)\nwhile True: pass", True),
    # --- classes
    Attack(
        "class walk", "subclasses", f"w = {_WALK}\nprint(w.__init__.__globals__['popen']('cat @SECRET_FILE@').read())"
    ),
    Attack(
        "class walk",
        "popen class",
        "for c in object.__subclasses__():\n    if c.__name__ == 'Popen': c(['touch', '@FOLDER@/x'])",
    ),
    Attack("class walk", "function globals", "print(lookup.__globals__['SECRET'])"),
    Attack("class walk", "function closure", "print([c.cell_contents for c in lookup.__closure__])"),
    Attack(
        "class walk",
        "traceback frames",
        "try: 1/0\nexcept Exception as e:\n    f = e.__traceback__.tb_frame\n    while f: print([v for v in f.f_globals if v == 'SECRET']); f = f.f_back",
    ),
    Attack("class walk", "format", "print('{0.__class__.__init__.__globals__}'.format(lookup))"),
    Attack(
        "class walk",
        "garbage",
        "import gc\nprint([o for o in gc.get_objects() if isinstance(o, str) and 'swordfish' in o])",
    ),
    Attack(
        "class walk",
        "frames",
        "import sys\nf = sys._getframe()\nwhile f: print(f.f_globals.get('SECRET')); f = f.f_back",
    ),
    Attack(
        "class walk",
        "code object",
        "def f(): pass\nf.__code__ = f.__code__.replace(co_consts=(None,), co_code=b'\\xff' * 50)\nf()",
    ),
    Attack(
        "class walk",
        "metaclass",
        "class M(type):\n    def __getattr__(c, n): return lookup.__globals__\nclass A(metaclass=M): pass\nprint(A.x['SECRET'])",
    ),
    # --- imports
    Attack("import", "dunder", "__import__('os').system('touch @FOLDER@/x')"),
    Attack("import", "importlib", "import importlib\nimportlib.import_module('os').system('touch @FOLDER@/x')"),
    Attack("import", "modules", "import sys\nsys.modules['os'].system('touch @FOLDER@/x')"),
    Attack("import", "builtins", "__builtins__['__import__']('os').system('touch @FOLDER@/x')"),
    Attack("import", "loader", "__loader__.load_module('posix').system('touch @FOLDER@/x')"),
    Attack("import", "eval", "eval(\"__import__('os').system('touch @FOLDER@/x')\")"),
    Attack("import", "exec", "exec(\"import os; os.system('touch @FOLDER@/x')\")"),
    Attack("import", "compile", "eval(compile(\"open('@SECRET_FILE@').read()\", 'x', 'eval'))"),
    Attack("import", "pickle", "import pickle\npickle.loads(b\"cos\\nsystem\\n(S'touch @FOLDER@/x'\\ntR.\")"),
    Attack("import", "the host's packages", "import nearfar\nprint('ESCAPED')"),
    Attack("import", "third-party", "import pydantic\nprint('ESCAPED')"),
    Attack("import", "libc", "import ctypes\nctypes.CDLL(None).system(b'touch @FOLDER@/x')"),
    Attack("import", "wide letters", "__ｉｍｐｏｒｔ__('os').system('touch @FOLDER@/x')"),
    # --- output
    Attack("output", "many lines", "while True: print('a' * 80)", True),
    Attack("output", "one line", "print('a' * 10**7)", True),
    Attack("output", "no end", "while True: print('a', end='')", True),
    Attack("output", "stderr", "import sys\nwhile True: sys.stderr.write('a' * 1000)", True),
    Attack("output", "value", "'a' * 10**6", True),
    Attack("output", "doubled value", f"{_DOUBLED}\nx", True),
    Attack("output", "doubled key", f"{_DOUBLED.replace('[', '(').replace(']', ')')}\n{{x: 1}}", True),
    Attack("output", "doubled field", f"{_DOUBLED}\nclass A: pass\na = A()\na.x = x\na"),
    Attack("border", "doubled call", f"{_DOUBLED}\nlookup(x)", True),
    Attack("output", "error", "raise ValueError('a' * 10**6)", True),
    Attack("output", "digits", "10 ** 5000", True),
    Attack("output", "cycle", "x = []\nx.append(x)\nx"),
    Attack("output", "deep", "x = 1\nfor _ in range(90_000): x = [x]\nx"),
    Attack(
        "output",
        "descriptors",
        "import os\nfor i in range(3, 30):\n    try: os.write(i, b'a' * 10**7)\n    except OSError: pass",
    ),
    Attack("output", "surrogates", "print(chr(0xd800))\nchr(0xdfff)"),
    # --- the border
    Attack(
        "border",
        "forged result",
        'import os\nfor i in range(3, 30):\n    try: os.write(i, b\'{"done": {"value": [[[1]]]}}\\n\')\n    except OSError: pass',
    ),
    Attack(
        "border",
        "forged call",
        'import os\nfor i in range(3, 30):\n    try: os.write(i, b\'{"call": "eval", "args": ["1"], "kwargs": {}}\\n\')\n    except OSError: pass',
    ),
    Attack(
        "border",
        "forged nonsense",
        "import os\nfor i in range(3, 30):\n    try: os.write(i, b'[' * 10**5 + b'\\n')\n    except OSError: pass",
    ),
    Attack(
        "border",
        "forged no number",
        'import os\nfor i in range(3, 30):\n    try: os.write(i, b\'{"done": {"value": [NaN, 1e999, -Infinity]}}\\n\')\n    except OSError: pass',
    ),
    Attack(
        "border",
        "half a message",
        "import os\nfor i in range(3, 30):\n    try: os.write(i, b'{\"output\":')\n    except OSError: pass\nwhile True: pass",
        True,
    ),
    Attack(
        "border",
        "empty messages",
        'import os\nwhile True:\n    for i in range(3, 9):\n        try: os.write(i, b\'{"output": ""}\\n\' * 1000)\n        except OSError: pass',
        True,
    ),
    Attack("border", "many lambdas", "x = " + "lambda:" * 14_000 + "1", True),
    Attack("border", "many branches", "if 0: pass\n" + "elif 0: pass\n" * 7_000, True),
    Attack("border", "many comparisons", "1" + "<1" * 40_000),
    Attack("border", "not granted", "system('touch @FOLDER@/x')", True),
    Attack("border", "many calls", "while True: lookup('a')", True),
    Attack("border", "large call", "lookup('a' * 10**7)"),
    Attack("border", "cyclic call", "x = []\nx.append(x)\nlookup(x)"),
    Attack("border", "strange call", "class A: pass\nlookup(A())\nlookup(name=lambda: 1)"),
    Attack("border", "wrong call", "lookup(1, 2, 3, nothing=4)", True),
    Attack("border", "deep code", "(" * 40_000 + ")" * 40_000),
    Attack("border", "deep operators", "x = " + "-" * 90_000 + "1"),
    Attack("border", "many attributes", "x = 1\n" + "x" + ".a" * 40_000),
    Attack("border", "null", "x = '\\0'\nprint(x)\0"),
    Attack("border", "wrong letters", "\ud800 = 1"),
]
