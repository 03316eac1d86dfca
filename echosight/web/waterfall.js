// The waterfall of a response: when each stage was reached after the end of the user's speech, as bars in a table.

const STAGES = [
  ["endpoint", "endpoint", "The server detected the end of your turn"],
  ["transcript", "transcript", "Your speech was transcribed"],
  ["first_text", "first text", "The model produced its first text"],
  ["first_audio", "first audio", "The first audio was synthesized"],
  ["heard", "heard", "The first audio was played"],
];

/** A table of the stages that were reached: {name of the stage: ms}. */
export function waterfallTable(reached) {
  const table = document.createElement("table");
  table.className = "waterfall";
  const stages = STAGES.filter(([stage]) => reached[stage] != null);
  const lastMs = Math.max(1, ...stages.map(([stage]) => reached[stage]));
  const caption = table.createCaption();
  caption.textContent = reached.heard != null ? `Heard ${format(reached.heard)} after you finished` : "After you finished";
  const body = table.createTBody();
  let startMs = 0;
  for (const [stage, label, description] of stages) {
    const ms = Math.max(0, reached[stage]);
    body.append(row(stage, label, description, Math.min(startMs, ms), ms, lastMs));
    startMs = Math.max(startMs, ms);
  }
  return table;
}

function row(stage, label, description, startMs, ms, lastMs) {
  const tr = document.createElement("tr");
  tr.dataset.stage = stage;
  tr.title = description;
  const th = document.createElement("th");
  th.scope = "row";
  th.textContent = label;
  const bar = document.createElement("td");
  bar.className = "bar";
  bar.setAttribute("aria-hidden", "true");
  const fill = document.createElement("i");
  fill.style.left = `${(100 * startMs) / lastMs}%`;
  fill.style.width = `${(100 * (ms - startMs)) / lastMs}%`;
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
