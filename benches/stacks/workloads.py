"""The workloads, what is taken from their reports, and the goals they are held against.

May not enter: processes.
"""

import math
import statistics

# Every stack, in the groups that workloads name. "N" stands for the number of cores.
ALL = ["webws", "webws-straight", "webws-N", "webws-alone", "webws-history-alone", "webws-meta-alone", "webws-alone-N",
       "before", "before-alone", "floor", "floor-N", "floor-alone", "floor-alone-N", "nchan", "lua", "node"]
# The floor behind nginx says what nginx and Redis cost; the simplest workloads say it.
ONE_WORKER = ["webws", "webws-straight", "webws-alone", "before", "before-alone", "floor-alone", "nchan", "lua", "node"]
BEHIND_NGINX = ["webws", "webws-straight", "before", "floor", "nchan", "lua", "node"]
# The floor has no limits and no liveness: nothing to see where those are asked for.
WITH_LIMITS = ["webws", "webws-straight", "webws-alone", "before", "before-alone", "nchan", "lua", "node"]
# What a history costs those that lose nothing; and those that come back.
FANOUT = [*ONE_WORKER, "webws-history-alone", "webws-meta-alone"]
HISTORIES = ["webws-history", "webws-history-alone", "nchan"]

# What must not happen: to publications, and to connections.
FAULTS = ["lost", "duplicated", "reordered", "failed", "ended"]


class Workload:
    """What the clients do. Seconds are of the full run; `--quick` has shorter ones and fewer clients."""

    def __init__(self, name, about, stacks, connections, channels=1, publish="redis", load=(), size=128,
                 warmup=1, duration=4, kind="deliveries", quick=False, bystanders=0):
        self.name, self.about, self.stacks = name, about, stacks
        self.connections, self.channels, self.publish = connections, channels, publish
        self.load, self.size, self.warmup, self.duration = list(load), size, warmup, duration
        # What the table shows: "deliveries", "connects", "idle" or "recoveries".
        self.kind = kind
        self.bystanders = bystanders
        self.quick = quick

    def arguments(self, running, connections, quick):
        """Of `webws-bench`, for a started stack."""
        if self.kind == "recoveries":
            stay = ["--bystanders", str(self.bystanders), "--settle", f"{self.warmup}s"] if self.bystanders else []
            return ["recover", "--url", running.url, "--connections", str(connections), "--channels", str(self.channels),
                    *running.publish, "--size", str(self.size), *self.load, *stay]
        channels = min(self.channels, connections)
        warmup, duration = self.seconds(quick)
        how = {"redis": running.publish, "websocket": ["--publish", "websocket"], "none": ["--idle"]}[self.publish]
        arguments = ["load", "--url", running.url, "--connections", str(connections), "--channels", str(channels), *how,
                     "--warmup", f"{warmup}s", "--duration", f"{duration}s", *self.load]
        if running.stack.subprotocol:
            arguments += ["--subprotocol", running.stack.subprotocol]
        if self.publish != "none":
            arguments += ["--size", str(self.size)]
        return arguments

    def seconds(self, quick):
        if not quick:
            return self.warmup, self.duration
        # Two rounds of pings, or there is nothing to see.
        return (5, 10) if self.kind == "idle" else (1, min(self.duration, 3))


def all_workloads():
    workloads = []
    for window in (1, 16, 64):
        workloads.append(Workload(
            f"fan1k-{window}", f"1 channel, 1,000 subscribers, 128 B, {window} in flight", ALL, 1000,
            load=["--in-flight", str(window)], quick=True))
    for window in (1, 16, 64):
        workloads.append(Workload(
            f"fan9k-{window}", f"1 channel, 9,000 subscribers, 128 B, {window} in flight", FANOUT, 9000,
            # The slowest need several seconds for one round of 64 x 9,000.
            load=["--in-flight", str(window)], warmup=2 if window < 64 else 5, duration=4 if window < 64 else 15))
    workloads.append(Workload(
        "fan1k-4k", "1 channel, 1,000 subscribers, 4 KiB, 1 in flight", ONE_WORKER, 1000, size=4096,
        load=["--in-flight", "1"], quick=True))
    for window in (1, 16, 64):
        workloads.append(Workload(
            f"wide-{window}", f"9,000 channels, 1 subscriber each, 128 B, {window} in flight", FANOUT, 9000, 9000,
            load=["--in-flight", str(window)]))
    workloads += [
        Workload("publish", "200 clients send to channels of their own, 128 B, 64 in flight", ONE_WORKER, 200, 200,
                 publish="websocket", load=["--in-flight", "64"], quick=True),
        Workload("open", "1,000 messages/s to 1,000 subscribers of 1 channel, 128 B", BEHIND_NGINX, 1000,
                 load=["--rate", "1000"], duration=6, quick=True),
        Workload("healthy", "100 messages/s of 4 KiB to 1,000 subscribers", WITH_LIMITS, 1000, size=4096,
                 load=["--rate", "100"], duration=12),
        Workload("slow", "the same, 1 % of the clients never read; latency of the others", WITH_LIMITS, 1000, size=4096,
                 load=["--rate", "100", "--slow", "1"], duration=12),
        Workload("connect", "2,000 connections, one after another, a channel each", ONE_WORKER, 2000, 2000,
                 publish="none", load=["--handshakes", "1"], duration=2, kind="connects", quick=True),
        Workload("storm", "9,000 connections simultaneously, a channel each; then 4 s idle", ONE_WORKER, 9000, 9000,
                 publish="none", load=["--storm", "--connect-timeout", "60s"], duration=4, kind="connects"),
        Workload("storm-64k", "the same, each client sends 64,000 bytes", WITH_LIMITS, 9000, 9000,
                 publish="none", load=["--storm", "--connect-timeout", "60s", "--first-message", "x" * 64000],
                 warmup=6, duration=4, kind="connects"),
        Workload("idle", "9,000 idle connections, pings answered", ONE_WORKER, 9000, 9000,
                 publish="none", warmup=6, duration=20, kind="idle"),
    ]
    for channels, about in ((1, "1 channel"), (100, "100 channels")):
        workloads.append(Workload(
            f"recover-1k{'' if channels == 1 else '-wide'}",
            f"1,000 clients of {about} come back, 64 handshakes at a time, 100 missed messages each", HISTORIES, 1000,
            channels, kind="recoveries", quick=True))
    # As many at a time as a listener's backlog holds: a SYN beyond is lost, and comes again after 1 s and 3 s.
    workloads.append(Workload(
        "recover-10k", "10,000 clients of 100 channels come back, 4,000 handshakes at a time, 100 missed messages each; "
        "200 others receive 1,000 messages/s", HISTORIES, 10000, 100, load=["--handshakes", "4000"], warmup=3, duration=20,
        kind="recoveries", bystanders=200))
    return workloads


# --- what a report says -----------------------------------------------------------------------

# Figures that are shown with their spread in the raw tables.
SPREAD = {"own_us", "stack_us", "p99_ms", "own_connect_us", "stack_connect_us", "own_idle_us", "stack_idle_us", "own_kb",
          "whole_s", "whole_p99_ms", "meanwhile_ms"}

# The columns of the tables: figure, title.
COLUMNS = {
    "deliveries": [("deliveries_per_s", "deliveries/s"), ("own_us", "own µs/delivery"), ("stack_us", "stack µs/delivery"),
                   ("p50_ms", "p50 ms"), ("p99_ms", "p99 ms"), ("max_ms", "max ms"), ("lost", "lost"),
                   ("stack_kb", "stack kB/conn."), ("load_percent", "load gen. %")],
    "connects": [("connects_per_s", "connects/s"), ("own_connect_us", "own µs/connect"),
                 ("stack_connect_us", "stack µs/connect"), ("connect_p99_ms", "p99 ms to the 101"), ("failed", "failed"),
                 ("own_kb", "own kB/conn."), ("stack_kb", "stack kB/conn.")],
    "idle": [("own_idle_us", "own µs/(conn. s)"), ("stack_idle_us", "stack µs/(conn. s)"), ("own_kb", "own kB/conn."),
             ("stack_kb", "stack kB/conn."), ("pings", "pings"), ("failed", "failed")],
    "recoveries": [("whole_s", "all whole after s"), ("own_connect_us", "own µs/client"),
                   ("stack_connect_us", "stack µs/client"), ("whole_p50_ms", "p50 ms"), ("whole_p99_ms", "p99 ms"),
                   ("lost", "lost"), ("failed", "failed"), ("quiet_ms", "others' p99 ms alone"),
                   ("meanwhile_ms", "meanwhile"), ("load_percent", "load gen. %")],
}


def figures(report, stack):
    """The figures of one trial, flat; None where there is nothing to divide by.

    `own` is the server under test alone, `stack` everything behind the clients (nginx and Redis too).
    """
    own = next(process for process in report["processes"] if process["name"] == stack.own)
    whole = report["stack"]
    connections, latency = report["connections"], report["latency_us"]
    delivered = report["deliveries"] > 0
    return {
        "deliveries_per_s": report["deliveries_per_second"] if delivered else None,
        "own_us": own["cpu_us_per_delivery"], "stack_us": whole["cpu_us_per_delivery"],
        "p50_ms": latency["p50"] / 1000 if latency["count"] else None,
        "p99_ms": latency["p99"] / 1000 if latency["count"] else None,
        "max_ms": latency["max"] / 1000 if latency["count"] else None,
        "lost": report["lost"], "duplicated": report["duplicated"],
        "reordered": report["reordered"] + report["misdelivered"],
        "given_up": report["given_up"],
        "failed": connections["failed"], "ended": sum(connections["endings"].values()),
        "connects_per_s": connections["per_second"],
        "connect_p99_ms": connections["latency_us"]["p99"] / 1000,
        "own_connect_us": own["cpu_us_per_connect"], "stack_connect_us": whole["cpu_us_per_connect"],
        # Resident growth since before the first connection, at the end of the run.
        "own_kb": own["resident_kb_per_connection_after"], "stack_kb": whole["resident_kb_per_connection_after"],
        "own_idle_us": own["cpu_us_per_connection_second"], "stack_idle_us": whole["cpu_us_per_connection_second"],
        "pings": report["pings"],
        "load_percent": report["itself"]["cpu_percent"],
        **_recovered(report.get("recovery")),
    }


def _recovered(recovery):
    """What `webws-bench recover` says more than `load`."""
    if not recovery:
        return {}
    latency, bystanders = recovery["latency_us"], recovery["bystanders"]
    return {
        "whole_s": recovery["seconds"] if recovery["whole"] == recovery["clients"] else None,
        "whole_p50_ms": latency["p50"] / 1000, "whole_p99_ms": latency["p99"] / 1000,
        "quiet_ms": bystanders and bystanders["quiet_us"]["p99"] / 1000,
        "meanwhile_ms": bystanders and bystanders["meanwhile_us"]["p99"] / 1000,
    }


def summary(figure, workload):
    """One line for the progress."""
    parts = [f"{short(figure[name])} {title}" for name, title in COLUMNS[workload.kind][:3]]
    parts += [f"{figure[name]:,} {name.replace('_', ' ')}" for name in FAULTS + ["given_up"] if figure[name]]
    if figure["load_percent"] > 85:
        parts.append(f"load generator busy for {figure['load_percent']:.0f} %")
    return ", ".join(parts)


# --- the goals --------------------------------------------------------------------------------

class Goal:
    """A ratio (or a figure) and its bound."""

    def __init__(self, text, bound, numerator, denominator=None):
        # `bound` is "<= 1.05" or ">= 3"; a side is (workload, stack, figure).
        self.text, self.bound = text, bound
        self.numerator, self.denominator = numerator, denominator

    def is_met(self, value):
        relation, limit = self.bound.split()
        return value <= float(limit) if relation == "<=" else value >= float(limit)

    def values(self, trials):
        """One value a repeat: trials of the same repeat ran beside each other, so they are divided pairwise."""
        top = _series(trials, self.numerator)
        if self.denominator is None:
            return list(top.values())
        below = _series(trials, self.denominator)
        return [top[repeat] / below[repeat] for repeat in top if below.get(repeat)]


def _series(trials, side):
    workload, stack, figure = side
    return {trial["repeat"]: trial["figures"][figure] for trial in trials
            if trial["workload"] == workload and trial["stack"] == stack
            and trial.get("figures") and trial["figures"].get(figure) is not None}


def all_goals(cores):
    """The table of what the comparison must show, in its order; `cores` is what N stands for."""
    goals = []

    def ratio(text, bound, workload, figure, top, below, other_workload=None):
        goals.append(Goal(text, bound, (workload, top, figure), (other_workload or workload, below, figure)))

    for window in (1, 16, 64):
        ratio(f"own CPU per delivery, alone, 1 worker, {window} in flight: webws / floor", "<= 1.05",
              f"fan1k-{window}", "own_us", "webws-alone", "floor-alone")
    for window in (1, 16, 64):
        ratio(f"the same with {cores} workers, {window} in flight: webws / floor", "<= 1.2",
              f"fan1k-{window}", "own_us", f"webws-alone-{cores}", f"floor-alone-{cores}")
    ratio("stack CPU per delivery, 1 in flight: Lua / webws", ">= 3", "fan1k-1", "stack_us", "lua", "webws")
    ratio("stack CPU per delivery, 64 in flight: Lua / webws", ">= 16", "fan1k-64", "stack_us", "lua", "webws")
    ratio("stack CPU per delivery, 64 in flight: nchan / webws", ">= 5", "fan1k-64", "stack_us", "nchan", "webws")
    ratio("stack CPU per delivery, 1 in flight: webws / nchan", "<= 1.45", "fan1k-1", "stack_us", "webws", "nchan")
    for window, bound in ((1, "<= 1.0"), (16, "<= 0.2"), (64, "<= 0.2")):
        ratio(f"straight: stack CPU per delivery, {window} in flight: webws / nchan", bound,
              f"fan1k-{window}", "stack_us", "webws-straight", "nchan")
    ratio("straight: stack CPU per message of the publish path: webws / nchan", "<= 1.0",
          "publish", "stack_us", "webws-straight", "nchan")
    ratio("straight: stack CPU per connection in a storm: webws / nchan", "<= 1.3",
          "storm", "stack_connect_us", "webws-straight", "nchan")
    ratio("straight: idle stack CPU: webws / nchan", "<= 1.0", "idle", "stack_idle_us", "webws-straight", "nchan")
    goals.append(Goal("straight: resident kB of the stack per idle connection", "<= 2.0",
                      ("idle", "webws-straight", "stack_kb")))
    ratio("open loop, 1,000/s to 1,000: deliveries/s, webws / nchan", ">= 2",
          "open", "deliveries_per_s", "webws", "nchan")
    ratio("open loop: p99 latency, webws / nchan", "<= 1", "open", "p99_ms", "webws", "nchan")
    ratio("4 KiB, 1 in flight: stack CPU per delivery, Lua / webws", ">= 2", "fan1k-4k", "stack_us", "lua", "webws")
    for window in (16, 64):
        ratio(f"9,000 channels, {window} in flight: own CPU per delivery, alone, webws / floor", "<= 1.2",
              f"wide-{window}", "own_us", "webws-alone", "floor-alone")
    ratio("publish path: stack CPU per message, Lua / webws", ">= 5", "publish", "stack_us", "lua", "webws")
    ratio("publish path: own CPU per message, alone, webws / floor", "<= 1.0",
          "publish", "own_us", "webws-alone", "floor-alone")
    for stack, where in (("webws-alone", "alone"), ("webws", "behind nginx")):
        goals.append(Goal(f"webws' resident kB per connection after a storm, {where}", "<= 1.0",
                          ("storm", stack, "own_kb")))
        goals.append(Goal(f"the same after 64 kB from each, {where}", "<= 1.0", ("storm-64k", stack, "own_kb")))
    ratio("own CPU per upgrade, one at a time, alone: webws / floor", "<= 2.5",
          "connect", "own_connect_us", "webws-alone", "floor-alone")
    ratio("own CPU per upgrade, in a storm, alone: webws / floor", "<= 1.5",
          "storm", "own_connect_us", "webws-alone", "floor-alone")
    for stack, where in (("webws-alone", "alone"), ("webws", "behind nginx")):
        goals.append(Goal(f"webws' idle CPU, us per session and second, {where}", "<= 2.0",
                          ("idle", stack, "own_idle_us")))
    for stack, where in (("webws-alone", "alone"), ("webws", "behind nginx")):
        ratio(f"p99 latency of the healthy, 1 % never reading / all reading, {where}", "<= 1.2",
              "slow", "p99_ms", stack, stack, "healthy")
    for load in (f"{shape}-{window}" for shape in ("fan1k", "fan9k", "wide") for window in (1, 16, 64)):
        ratio(f"{load}, own CPU per delivery, alone: with a history / without", "<= 1.15",
              load, "own_us", "webws-history-alone", "webws-alone")
        ratio(f"{load}, own CPU per delivery, alone: with positions / without a history", "<= 1.5",
              load, "own_us", "webws-meta-alone", "webws-alone")
        ratio(f"{load}, own CPU per delivery, alone, without a history: now / before", "<= 1.02",
              load, "own_us", "webws-alone", "before-alone")
    for load in ("recover-1k", "recover-1k-wide", "recover-10k"):
        ratio(f"{load}, until all are whole: webws behind nginx / nchan", "<= 1",
              load, "whole_s", "webws-history", "nchan")
        ratio(f"{load}, stack CPU per client: webws behind nginx / nchan", "<= 1",
              load, "stack_connect_us", "webws-history", "nchan")
    for load in all_workloads():
        if load.kind == "recoveries":
            continue
        own = {"deliveries": "own_us", "connects": "own_connect_us", "idle": "own_idle_us"}[load.kind]
        for stack, before in (("webws-alone", "before-alone"), ("webws", "before")):
            ratio(f"{load.name}, own CPU: {stack} / {before}", "<= 1.03", load.name, own, stack, before)
            if load.kind != "deliveries":
                ratio(f"{load.name}, resident kB: {stack} / {before}", "<= 1.03", load.name, "own_kb", stack, before)
    return goals


def faults_of(trials, stack):
    """What must be 0, summed over all trials of a stack, and how many these are."""
    measured = [trial["figures"] for trial in trials if trial["stack"] == stack and trial.get("figures")]
    return {name: sum(figure.get(name) or 0 for figure in measured) for name in FAULTS}, len(measured)


# --- text -------------------------------------------------------------------------------------

def short(value):
    """Three significant digits."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def middle(values):
    """The median."""
    values = [value for value in values if value is not None]
    return short(statistics.median(values)) if values else "-"


def spread(values):
    """median [min-max], or the one value if they look the same."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    if short(min(values)) == short(max(values)):
        return short(values[0])
    return f"{short(statistics.median(values))} [{short(min(values))}-{short(max(values))}]"
