"""The picture: CPU per delivery of every stack, as bars, by how many messages are in flight.

May not enter: measurements; it draws the medians it is given.
"""

import statistics

import workloads

BAR, GAP, LEFT, WIDTH, PANEL = 18, 6, 130, 420, 34
COLOURS = {"webws": "#1f6feb", "floor": "#8c959f", "nchan": "#bf8700", "lua": "#cf222e", "node": "#2da44e",
           "before": "#8250df"}


def draw(trials, file):
    """Writes an SVG, if there is anything to show."""
    panels = []
    for load in workloads.all_workloads():
        bars = []
        for stack in dict.fromkeys(trial["stack"] for trial in trials):
            values = [trial["figures"]["stack_us"] for trial in trials
                      if (trial["workload"], trial["stack"]) == (load.name, stack)
                      and trial.get("figures") and trial["figures"].get("stack_us")]
            if values:
                bars.append((stack, statistics.median(values), min(values), max(values)))
        if bars and load.kind == "deliveries":
            panels.append((load.about, bars))
    if not panels:
        return
    lines, y = [], 40
    for about, bars in panels:
        y += PANEL
        lines.append(f'<text x="10" y="{y - 10}" font-weight="bold">{about}</text>')
        scale = WIDTH / max(high for *_, high in bars)
        for stack, median, low, high in bars:
            colour = COLOURS[stack.split("-")[0]]
            middle = y + BAR / 2
            lines += [
                f'<text x="{LEFT - 8}" y="{middle + 4}" text-anchor="end">{stack}</text>',
                f'<rect x="{LEFT}" y="{y}" width="{max(1, median * scale):.1f}" height="{BAR}" fill="{colour}"/>',
                f'<path d="M{LEFT + low * scale:.1f} {middle}H{LEFT + high * scale:.1f}" stroke="#24292f"/>',
                f'<text x="{LEFT + high * scale + 6:.1f}" y="{middle + 4}">{workloads.short(median)}</text>',
            ]
            y += BAR + GAP
    height, width = y + 20, LEFT + WIDTH + 80
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="#24292f">\n'
            f'<rect width="100%" height="100%" fill="#fff"/>\n<text x="10" y="24" font-size="15" font-weight="bold">'
            'µs of CPU per delivery, everything behind the clients: less is better</text>\n')
    file.write_text(head + "\n".join(lines) + "\n</svg>\n")
