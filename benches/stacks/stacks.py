"""The stacks: what each needs, how it starts, where its clients go, which processes to watch.

A stack is started anew for each measurement, with a Redis of its own, all on loopback and in a
folder of its own, and killed after it. May not enter: workloads, figures.
"""

import ctypes
import getpass
import grp
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import time

import probe

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parent.parent
# Workers of the stacks "-N": one per core, and two where there is one.
MANY = max(2, len(os.sched_getaffinity(0)))
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/local/openresty/bin"
LOCATION_LOG = "/var/log/nginx/webws.log"
SIDECAR_SOCKET = "/run/webws/webws.sock"
HANDOFF_SOCKET = "/run/webws/handoff.sock"
SCRIPT_NAME = "webws-straight.lua"
SCRIPT = f"/etc/nginx/{SCRIPT_NAME}"


class Missing(Exception):
    """A stack cannot run here: what is missing, and what installs it."""


def find(program):
    return shutil.which(program, path=PATH)


# --- processes --------------------------------------------------------------------------------

class Children:
    """Every process that was started, so that none outlives the script."""

    def __init__(self):
        self.running = []

    def start(self, command, log, cwd=None):
        """Starts a process in a group of its own; what it says goes to the file `log`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WEBWS_")}
        with open(log, "ab") as sink:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, cwd=cwd, env=environment,
                start_new_session=True, preexec_fn=_die_with_parent)
        child.log = log
        self.running.append(child)
        return child

    def stop(self, child):
        """TERM to the group, KILL after 1 s: a drain is not what is measured."""
        for number, patience in ((signal.SIGTERM, 1), (signal.SIGKILL, 3)):
            try:
                os.killpg(child.pid, number)
            except ProcessLookupError:
                pass
            try:
                child.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        # nginx' workers end after their master: the group is empty when nobody can be signalled.
        deadline = time.monotonic() + 3
        while _group_lives(child.pid):
            if time.monotonic() > deadline:
                os.killpg(child.pid, signal.SIGKILL)
            time.sleep(0.01)
        if child in self.running:
            self.running.remove(child)

    def stop_all(self):
        for child in reversed(list(self.running)):
            self.stop(child)


def _die_with_parent():
    # prctl(2), PR_SET_PDEATHSIG: if this script is killed with -9, the children still go.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _group_lives(group):
    try:
        os.killpg(group, 0)
        return True
    except ProcessLookupError:
        return False


def free_port():
    """A free port below those that the kernel gives to outgoing connections."""
    for _ in range(200):
        port = random.randrange(20000, 32000)
        with socket.socket() as attempt:
            try:
                attempt.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise Missing("no free port between 20000 and 32000")


def wait_for(address, child, what):
    """Until something accepts connections at `address`."""
    deadline = time.monotonic() + 10
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as attempt:
            try:
                attempt.connect(address)
                return
            except OSError:
                pass
        if child.poll() is not None or time.monotonic() > deadline:
            said = pathlib.Path(child.log).read_text(errors="replace")[-800:]
            raise probe.Fault(f"{what} did not start: {said.strip() or 'it said nothing'}")
        time.sleep(0.01)


# --- what is there ----------------------------------------------------------------------------

class Tools:
    """The programs and modules, found once."""

    def __init__(self, options):
        self.files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.files, self.files))
        self.target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or TOP / "target").resolve()
        self.webws = options.bin_dir / "webws" if options.bin_dir else self.target / "release/webws"
        self.bench = self.webws.with_name("webws-bench")
        self.before = options.before
        self.nginx = find("nginx")
        self.openresty = find("openresty")
        self.redis = find("redis-server")
        self.node_folder = self.target / "compare-node"
        self.lua_path = options.lua_path

    def module(self, name):
        """The file of a dynamic nginx module, or None."""
        told = subprocess.run([self.nginx, "-V"], capture_output=True, text=True, check=True).stderr
        folders = re.findall(r"--modules-path=(\S+)", told) + ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"]
        files = (pathlib.Path(folder, name) for folder in folders)
        return next((file for file in files if file.exists()), None)

    def need_proxy(self):
        if not self.nginx:
            raise Missing("nginx: apt-get install nginx")

    def need_redis(self):
        if not self.redis:
            raise Missing("redis-server: apt-get install redis-server")

    def need_nchan(self):
        self.need_proxy()
        if not self.module("ngx_nchan_module.so"):
            raise Missing("nchan: apt-get install libnginx-mod-nchan")

    def lua_folders(self):
        """Folders that hold resty/websocket and resty/redis, for lua_package_path."""
        given = []
        if self.lua_path:
            # The folder itself or a checkout's lib/ in it.
            given = [self.lua_path, self.lua_path / "lib"]
        system = [pathlib.Path(folder) for folder in (
            "/usr/share/lua/5.1", "/usr/local/share/lua/5.1", "/usr/local/lib/lua", "/usr/local/openresty/lualib")]
        return [folder for folder in given + system if (folder / "resty").is_dir()]

    def need_lua_module(self):
        if self.openresty:
            return
        self.need_proxy()
        if not self.module("ngx_http_lua_module.so"):
            raise Missing("ngx_lua: apt-get install libnginx-mod-http-lua lua-cjson, or OpenResty")

    def need_lua(self):
        self.need_lua_module()
        if self.openresty:
            return
        for file, where in (("websocket/server.lua", "lua-resty-websocket"), ("redis.lua", "lua-resty-redis")):
            if not any((folder / "resty" / file).exists() for folder in self.lua_folders()):
                raise Missing(f"{where}: put its lib/ into a folder and give that by --lua-path, or "
                              f"luarocks --lua-version 5.1 install {where}")
        compiled = [*pathlib.Path("/usr/lib").glob("*/lua/5.1/cjson.so"),
                    *pathlib.Path("/usr/local/lib").glob("lua/5.1/cjson.so")]
        if not compiled:
            raise Missing("cjson: apt-get install lua-cjson")

    def need_node(self):
        self.need_proxy()
        if not find("node") or not find("npm"):
            raise Missing("node and npm: apt-get install nodejs npm")
        if all((self.node_folder / "node_modules" / name).is_dir() for name in ("ws", "ioredis")):
            return
        self.node_folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "node/package.json", self.node_folder)
        command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
        result = subprocess.run(command, cwd=self.node_folder, capture_output=True, text=True, timeout=120, check=False)
        if result.returncode:
            raise Missing(f"npm packages: (cd {self.node_folder} && npm install ws ioredis) failed: "
                          + result.stderr.strip()[-200:])


# --- the stacks -------------------------------------------------------------------------------

class Stack:
    """One way to serve the clients. `own` is the watched name of the server under test."""

    def __init__(self, name, about, server, workers=1, proxied=True, is_older=False, history=False,
                 subprotocol=None, is_straight=False):
        self.name, self.about, self.server = name, about, server
        self.workers, self.proxied, self.is_older, self.history = workers, proxied, is_older, history
        self.subprotocol, self.is_straight = subprotocol, is_straight
        self.own = "nginx" if server in ("nchan", "lua") else server
        self.redis = server != "nchan"
        self.suffix = server != "nchan"

    def need(self, tools):
        """Raises Missing if it cannot run here."""
        if self.redis:
            tools.need_redis()
        if self.server in ("nchan", "lua", "node"):
            getattr(tools, "need_" + self.server)()
        elif self.proxied:
            tools.need_proxy()
        if self.is_straight:
            tools.need_lua_module()
        if self.is_older and not tools.before:
            raise Missing("an older webws: --before BINARY")


class Running:
    """A started stack, in its own folder; a context manager.

    `ping` is nchan's interval. The others ping after 5 s and wait for no answer; nchan closes who
    has not answered by the next one, which under overload is everybody.
    """

    def __init__(self, stack, tools, children, folder, ping="5s", redis_port=None):
        self.stack, self.tools, self.children, self.folder = stack, tools, children, folder
        self.ping = ping
        self.watch = {}
        # A Redis that runs already is another's to watch and to stop.
        self.redis_port, self.port = redis_port, None
        # sun_path of unix(7) holds 108 bytes.
        self.socket = str(folder / "s")

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if self.stack.redis and not self.redis_port:
                self._start_redis()
            if self.stack.server in ("webws", "floor", "node"):
                self._start_server()
            if self.stack.proxied:
                self._start_nginx()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for child in reversed(list(self.watch.values())):
            self.children.stop(child)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self):
        return ("127.0.0.1", self.port) if self.stack.proxied else self.socket

    @property
    def url(self):
        """Where clients go, for webws-bench; %22 is the quote around a JSON string."""
        path = "/webws?channel=%22c{channel}%22"
        return f"ws://127.0.0.1:{self.port}{path}" if self.stack.proxied else f"ws+unix:{self.socket}:{path}"

    @property
    def publish(self):
        """The arguments of webws-bench with which publications get in."""
        if self.stack.redis:
            return ["--publish", f"redis://127.0.0.1:{self.redis_port}", "--redis-channel", "chat:c{channel}"]
        return ["--publish", f"http://127.0.0.1:{self.port}/pub?channel=%22c{{channel}}%22"]

    def watches(self):
        return [part for name, child in self.watch.items() for part in ("--watch", f"{name}={child.pid}")]

    def check(self):
        """Raises probe.Fault unless publications and texts arrive as they should."""
        if self.stack.redis:
            def publish(channel, payload):
                probe.redis_publish(self.redis_port, "chat:" + channel, payload)
        else:
            def publish(channel, payload):
                probe.http_publish(self.port, channel, payload)
        probe.check(self.address, publish, self.stack.suffix)

    def _start(self, name, command):
        child = self.children.start(command, self.folder / f"{name}.log", cwd=self.folder)
        self.watch[name] = child
        return child

    def _start_redis(self):
        self.redis_port = free_port()
        child = self._start("redis", [
            self.tools.redis, "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--maxclients", str(self.tools.files - 100), "--tcp-backlog", "4096", "--dir", str(self.folder),
            "--client-output-buffer-limit", "pubsub 256mb 64mb 60", "--loglevel", "warning"])
        wait_for(("127.0.0.1", self.redis_port), child, "redis-server")

    def _start_server(self):
        server, workers = self.stack.server, str(self.stack.workers)
        if server == "webws":
            binary = self.tools.before if self.stack.is_older else self.tools.webws
            command = [str(binary), "run", "--listen", f"unix:{self.socket}",
                       "--broker", f"redis://127.0.0.1:{self.redis_port}", "--workers", workers]
            if self.stack.history:
                # As the endpoint without a configuration, and a history with its defaults.
                config = self.folder / "webws.toml"
                config.write_text("[[endpoint]]\nhistory = {}\n")
                command += ["--config", str(config)]
            if self.stack.is_straight:
                command += ["--listen", f"handoff:{self.folder}/h"]
        elif server == "floor":
            command = [str(self.tools.bench), "floor", "--listen", f"unix:{self.socket}",
                       "--redis", f"127.0.0.1:{self.redis_port}", "--workers", workers]
        else:
            shutil.copy(HERE / "node/server.js", self.tools.node_folder)
            command = [find("node"), str(self.tools.node_folder / "server.js"), self.socket, str(self.redis_port)]
        wait_for(self.socket, self._start(server, command), server)

    def _start_nginx(self):
        self.port = free_port()
        server, tools = self.stack.server, self.tools
        program, modules, lua = tools.nginx, [], ""
        if server == "nchan":
            modules = [tools.module("ngx_nchan_module.so")]
        elif server == "lua" or self.stack.is_straight:
            if server == "lua":
                folders = ";".join(f"{folder}/?.lua" for folder in tools.lua_folders())
                lua = f'lua_package_path "{folders};;";' if folders else ""
            if tools.openresty:
                program = tools.openresty
            else:
                modules = [tools.module("ndk_http_module.so"), tools.module("ngx_http_lua_module.so")]
        proxied = server not in ("nchan", "lua")
        location = "webws-straight-location.conf" if self.stack.is_straight else "webws-location.conf"
        # As root nginx would change to another user, who may not reach the socket.
        group = grp.getgrgid(os.getgid()).gr_name
        user = f"user {getpass.getuser()} {group};" if os.getuid() == 0 else ""
        words = {
            "RUN": self.folder, "STACKS": HERE, "PORT": self.port, "REDIS_PORT": self.redis_port, "USER": user,
            "FILES": tools.files, "CONNECTIONS": tools.files - 100, "LUA_PATHS": lua,
            "PING": self.ping,
            "LOCATION": location,
            "MODULES": "\n".join(f"load_module {module};" for module in modules if module),
            "MAIN": _filled(HERE / "main.conf", {}), "HTTP": _filled(HERE / "http.conf", {}),
        }
        if proxied:
            for name in ("webws-http.conf", location, SCRIPT_NAME):
                text = (TOP / "nginx" / name).read_text()
                text = text.replace(SIDECAR_SOCKET, self.socket).replace(LOCATION_LOG, f"{self.folder}/access.log")
                text = text.replace(HANDOFF_SOCKET, f"{self.folder}/h").replace(SCRIPT, f"{self.folder}/{SCRIPT_NAME}")
                (self.folder / name).write_text(text)
        config = self.folder / "nginx.conf"
        config.write_text(_filled(HERE / f"{'proxied' if proxied else server}.conf", words))
        child = self._start("nginx", [program, "-p", str(self.folder), "-c", str(config)])
        wait_for(("127.0.0.1", self.port), child, f"nginx ({server})")


def _filled(file, words):
    """The file with each @NAME@ replaced; twice, for those that come with @MAIN@ and @HTTP@."""
    text = file.read_text()
    for _ in range(2):
        for name, value in words.items():
            text = text.replace(f"@{name}@", str(value))
    return text


def all_stacks():
    """In the order of the table."""
    return [
        Stack("webws", "webws behind nginx, 1 worker", "webws"),
        Stack(f"webws-{MANY}", f"webws behind nginx, {MANY} workers", "webws", MANY),
        Stack("webws-straight", "webws, to which nginx hands its clients off, 1 worker", "webws", is_straight=True),
        Stack("webws-alone", "webws on its Unix socket, 1 worker", "webws", proxied=False),
        Stack(f"webws-alone-{MANY}", f"webws on its Unix socket, {MANY} workers", "webws", MANY, proxied=False),
        Stack("before", "an older webws behind nginx, 1 worker", "webws", is_older=True),
        Stack("before-alone", "an older webws on its Unix socket, 1 worker", "webws", proxied=False, is_older=True),
        Stack("webws-history", "webws behind nginx, 1 worker, with a history", "webws", history=True),
        Stack("webws-history-alone", "webws on its Unix socket, 1 worker, with a history", "webws", proxied=False,
              history=True),
        Stack("webws-meta-alone", "the same, to clients of ws+meta.nchan: with positions", "webws", proxied=False,
              history=True, subprotocol="ws+meta.nchan"),
        Stack("floor", "the floor behind nginx, 1 worker", "floor"),
        Stack(f"floor-{MANY}", f"the floor behind nginx, {MANY} workers", "floor", MANY),
        Stack("floor-alone", "the floor on its Unix socket, 1 worker", "floor", proxied=False),
        Stack(f"floor-alone-{MANY}", f"the floor on its Unix socket, {MANY} workers", "floor", MANY, proxied=False),
        Stack("nchan", "nchan in nginx, its own store", "nchan"),
        Stack("lua", "the Lua handler in nginx", "lua"),
        Stack("node", "Node with ws and ioredis behind nginx", "node"),
    ]
