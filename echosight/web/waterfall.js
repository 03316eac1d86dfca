// The waterfall of a turn: when each stage was reached after the end of speech, as bars in a table.

const STAGES = [
  ["endpoint", "endpoint", "The server was sure that you had finished"],
  ["transcript", "transcript", "What you said was written down"],
  ["first_text", "first text", "The model had its first word"],
  ["first_audio", "first audio", "The first sound was made"],
  ["heard", "heard", "You heard it"],
];

/** A table of the stages that are known; `reached` maps their names to ms. */
export function waterfall(reached) {
  const table = document.createElement("table");
  table.className = "waterfall";
  const known = STAGES.filter(([stage]) => reached[stage] != null);
  const end = Math.max(1, ...known.map(([stage]) => reached[stage]));
  const caption = table.createCaption();
  caption.textContent = reached.heard != null ? `Heard ${format(reached.heard)} after you finished` : "After you finished";
  const body = table.createTBody();
  let from = 0;
  for (const [stage, label, meaning] of known) {
    const ms = Math.max(0, reached[stage]);
    body.append(row(stage, label, meaning, Math.min(from, ms), ms, end));
    from = Math.max(from, ms);
  }
  return table;
}

function row(stage, label, meaning, from, ms, end) {
  const tr = document.createElement("tr");
  tr.dataset.stage = stage;
  tr.title = meaning;
  const th = document.createElement("th");
  th.scope = "row";
  th.textContent = label;
  const bar = document.createElement("td");
  bar.className = "bar";
  bar.setAttribute("aria-hidden", "true");
  const fill = document.createElement("i");
  fill.style.left = `${(100 * from) / end}%`;
  fill.style.width = `${(100 * (ms - from)) / end}%`;
  bar.append(fill);
  const number = document.createElement("td");
  number.className = "ms";
  number.textContent = format(ms);
  tr.append(th, bar, number);
  return tr;
}

function format(ms) {
  return ms < 10_000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
