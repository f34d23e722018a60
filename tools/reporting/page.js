// Draws each figure when it comes into sight, in the colours of the page; sorts the table whose head is clicked.
const figures = JSON.parse(document.getElementById('drawn').textContent);
const root = document.documentElement;
const colour = name => getComputedStyle(root).getPropertyValue(name).trim();

function layout(given) {
  const axis = { gridcolor: colour('--line'), linecolor: colour('--line'), zerolinecolor: colour('--line') };
  return Object.assign({ height: 330 }, given, {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: { color: colour('--ink'), size: 12 },
    hoverlabel: { bgcolor: colour('--fill'), bordercolor: colour('--line'), font: { color: colour('--ink') } },
    xaxis: Object.assign({}, given.xaxis, axis), yaxis: Object.assign({}, given.yaxis, axis) });
}

function draw(box) {
  const { data, layout: given } = figures[box.dataset.figure];
  box.dataset.drawn = 1;
  Plotly.react(box, data, layout(given), { responsive: true, displaylogo: false, displayModeBar: false });
}

const sight = new IntersectionObserver(seen => seen.forEach(entry => {
  if (entry.isIntersecting) { sight.unobserve(entry.target); draw(entry.target); }
}), { rootMargin: '600px' });
document.querySelectorAll('.plot').forEach(box => sight.observe(box));

// The reader's own choice of light or dark, else the system's; #dark and #light in the address choose, too.
const system = matchMedia('(prefers-color-scheme: dark)');
function theme(dark) {
  root.classList.toggle('dark', dark);
  document.querySelectorAll('.plot[data-drawn]').forEach(draw);
}
let chosen = { '#dark': true, '#light': false }[location.hash];
theme(chosen ?? system.matches);
system.addEventListener('change', () => { if (chosen === undefined) theme(system.matches); });
document.getElementById('theme').addEventListener('click', () => theme(chosen = !root.classList.contains('dark')));

document.querySelectorAll('thead').forEach(head => head.addEventListener('click', event => {
  const cell = event.target.closest('th');
  if (!cell) return;
  const column = [...cell.parentNode.children].indexOf(cell);
  const down = cell.getAttribute('aria-sort') !== 'descending' && column > 0;
  head.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
  cell.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const key = row => row.children[column].dataset.sort ?? row.children[column].textContent;
  const body = head.parentNode.tBodies[0];
  const order = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === '' || y === '') return (x === '') - (y === '');           // what is not known stays below
    const found = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? -found : found;
  };
  [...body.rows].sort(order).forEach(row => body.append(row));
}));
