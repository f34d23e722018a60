"""Figures as plotly's JSON, plain dicts. The page's script gives them the colours of light or dark."""
from .results import COSTS, front

# Hues that stay apart in print, on white and on black (Okabe and Ito's, without black); then other marks.
HUES = ['#0072b2', '#e69f00', '#009e73', '#d55e00', '#cc79a7', '#56b4e9', '#b8a800', '#8c6bb1']
MARKS = ['circle', 'square', 'diamond', 'triangle-up', 'x', 'star', 'hexagon', 'cross']
NAMED = 6                                                               # with more methods only the front's have names


def looks(methods):
    """{method: (colour, mark)}, the same on the whole page."""
    return {method: (HUES[i % len(HUES)], MARKS[i // len(HUES) % len(MARKS)]) for i, method in enumerate(methods)}


def figure(data, xaxis, yaxis, **layout):
    return dict(data=data, layout=dict(dict(
        xaxis=dict(xaxis, automargin=True), yaxis=dict(yaxis, automargin=True), showlegend=False, hovermode='closest',
        margin=dict(l=50, r=15, t=30, b=45)), **layout))


def title(text):
    return dict(text=text, font=dict(size=13))


# ---- accuracy against costs

def against(points, look, x, y, unit='', line=True):
    """Points (method, cost, value, spread or None) and their Pareto front: the left upper corner is best.

    On an axis of decades a cost of 0 stands at the left edge.
    """
    costs = [cost for _, cost, *_ in points]
    least = min((cost for cost in costs if cost > 0), default=1)
    decades = max(costs) > 30 * least
    at = {cost: max(cost, least / 5) if decades else cost for cost in costs}
    best = front([(cost, value) for _, cost, value, _ in points])
    data = [dict(type='scatter', mode='lines', x=[at[cost] for cost, _ in best], y=[value for _, value in best],
                 line=dict(shape='hv', dash='dot', width=1.5, color='#888'), hoverinfo='skip')] if line else []
    for method, cost, value, spread in points:
        colour, mark = look[method]
        on_front = (cost, value) in best
        named = on_front or len(points) <= NAMED
        data.append(dict(
            type='scatter', mode='markers+text' if named else 'markers', x=[at[cost]], y=[value], name=method,
            text=[method] if named else None, textposition=f'top {"right" if cost == min(at) else "center"}',
            textfont=dict(size=11), cliponaxis=False,
            error_y=dict(type='data', array=[spread or 0], visible=spread is not None, thickness=1, width=3),
            marker=dict(color=colour, symbol=mark, size=12 if on_front else 9, opacity=1 if on_front else 0.75),
            hovertemplate=f'<b>%{{fullData.name}}</b><br>{value:.2f}{f" ± {spread:.2f}" if spread is not None else ""}'
                          f'<br>{cost:,.6g} {unit}<extra></extra>'))
    axis = dict(title=title(x + (' (0: left edge)' if decades and 0 in costs else '')))
    axis.update(dict(type='log', dtick=1) if decades else dict(rangemode='tozero'))
    return figure(data, axis, dict(title=title(y)))


def tradeoffs(view, look):
    """A figure for each cost that at least two methods have, which differ in it."""
    found = []
    for cost, (text, short) in COSTS.items():
        points = [(method, entry.costs[cost], entry.mean, entry.spread) for method, entry in view.compared.items()
                  if cost in entry.costs]
        if len({point[1] for point in points}) > 1:
            found.append(against(points, look, text, view.metric, short.partition(', ')[2]))
    return found


# ---- learning curves

def curves(lines, look, what, x):
    """Lines of runs: (method, name, {step: value}); the runs of a method have its colour, one of them is in the key."""
    data, seen = [], set()
    for method, name, values in lines:
        data.append(dict(type='scatter', mode='lines+markers' if len(values) < 12 else 'lines', x=list(values),
                         y=list(values.values()), name=method, legendgroup=method, showlegend=method not in seen,
                         line=dict(color=look[method][0], width=1.5), marker=dict(size=5),
                         hovertemplate=f'%{{y:.4g}} at {x} %{{x}}<extra>{name}</extra>'))
        seen.add(method)
    return figure(data, dict(title=title(x)), dict(title=title(what)), showlegend=True,
                  legend=dict(orientation='h', y=-0.25))


# ---- what a run has learned: rows of the tools plot_pear, plot_selection, plot_scales

def order(rows, key):
    return list(dict.fromkeys(row[key] for row in rows))


def tiles(rows, colour, says, text=None, **scale):
    """Blocks by roles; `colour(row)` a number or None, `says(row)` what is told on hovering, `text(row)` inside."""
    blocks, roles = order(rows, 'block'), order(rows, 'role')
    table = [[None] * len(blocks) for _ in roles]
    words, inside = ([[''] * len(blocks) for _ in roles] for _ in range(2))
    for row in rows:
        i, j = roles.index(row['role']), blocks.index(row['block'])
        table[i][j], words[i][j] = colour(row), says(row)
        inside[i][j] = text(row) if text else ''
    data = dict(type='heatmap', x=blocks, y=roles, z=table, text=inside, customdata=words, texttemplate='%{text}',
                hovertemplate='%{customdata}<extra></extra>', xgap=2, ygap=2, hoverongaps=False, **scale)
    return figure([data], dict(title=title('block'), type='category'), dict(type='category', autorange='reversed'),
                  height=130 + 44 * len(roles))


def pear(rows):
    """Contributions; who was pruned (none inside) and who serves there."""
    places = {row['name']: f'{row["block"]} {row["role"]}' for row in rows}

    def says(row):
        by = places.get(row['served_by'], 'none')
        return (f'{row["block"]} {row["role"]}: contributes {row["score"]:.3g}, '
                + (f'pruned, served by {by}' if row['pruned'] else 'kept'))

    return tiles(rows, lambda row: row['score'], says,
                 lambda row: f'← {places.get(row["served_by"], "none")}' if row['pruned'] else 'kept',
                 colorscale='Viridis', colorbar=dict(title=dict(text='contribution', side='right'), thickness=12))


def selection(rows):
    """How many weights GPS has selected, coloured by the power of ten."""
    from math import log10
    counts = {}
    for row in rows:                                                    # a role may have several layers in a block
        key = row['block'], row['role']
        counts[key] = counts.get(key, 0) + row['selected']
    cells = [dict(block=block, role=role, selected=count) for (block, role), count in counts.items()]
    return tiles(cells, lambda cell: log10(cell['selected']) if cell['selected'] else None,
                 lambda cell: f'{cell["block"]} {cell["role"]}: {cell["selected"]:,} selected',
                 lambda cell: f'{cell["selected"]:,}', colorscale='Viridis', showscale=False)


def scales(rows, start):
    """The scales of DMLoRA over the blocks: (block, role, scale), and where they started."""
    blocks = list(dict.fromkeys(block for block, _, _ in rows))
    data = []
    for i, role in enumerate(dict.fromkeys(role for _, role, _ in rows)):
        points = [(block, scale) for block, label, scale in rows if label == role]
        data.append(dict(type='scatter', mode='lines+markers', name=role, x=[block for block, _ in points],
                         y=[scale for _, scale in points], line=dict(color=HUES[i % len(HUES)])))
    data.append(dict(type='scatter', mode='lines', name='start', x=blocks, y=[start] * len(blocks), hoverinfo='skip',
                     line=dict(dash='dot', color='#888')))
    return figure(data, dict(title=title('block'), type='category'), dict(title=title('learned scale')),
                  showlegend=True, legend=dict(orientation='h', y=-0.25))
