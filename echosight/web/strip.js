// The last seconds as they sounded: you above the line, the answer below it, coloured by how sure the server is of speech.

const STEP_MS = 40;
const BAR = 3; // pixels, with the gap

export class Strip {
  constructor(canvas, meter) {
    this.canvas = canvas;
    this.meter = meter;
    this.bars = [];
    this.now = { mine: 0, theirs: 0, probability: 0 };
    this.running = false;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#paint());
    new ResizeObserver(() => this.#fit()).observe(canvas);
  }

  start() {
    if (this.running) return;
    this.running = true;
    this.at = performance.now();
    const frame = (now) => {
      if (!this.running) return;
      this.#advance(now);
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  stop() {
    this.running = false;
    this.bars = [];
    this.#draw();
    this.#tell(0);
  }

  mine(level) {
    this.now.mine = Math.max(this.now.mine, loudness(level));
  }

  theirs(level) {
    this.now.theirs = Math.max(this.now.theirs, loudness(level));
  }

  probability(probability) {
    this.now.probability = probability;
    this.#tell(probability);
  }

  #tell(probability) {
    const percent = Math.round(probability * 100);
    if (Math.abs(percent - (this.told ?? 0)) < 10 && percent !== 0) return;
    this.told = percent;
    this.meter.setAttribute("aria-valuenow", percent);
  }

  #advance(now) {
    if (now - this.at > 1000) this.at = now - STEP_MS; // The page was hidden.
    let moved = false;
    while (now - this.at >= STEP_MS) {
      this.at += STEP_MS;
      this.bars.push(this.now);
      this.now = { mine: 0, theirs: 0, probability: this.now.probability };
      moved = true;
    }
    const room = Math.ceil(this.canvas.clientWidth / BAR);
    if (this.bars.length > room) this.bars.splice(0, this.bars.length - room);
    if (moved) this.#draw();
  }

  #fit() {
    const ratio = devicePixelRatio || 1;
    this.canvas.width = this.canvas.clientWidth * ratio;
    this.canvas.height = this.canvas.clientHeight * ratio;
    this.#paint();
  }

  #paint() {
    const style = getComputedStyle(this.canvas);
    this.colours = Object.fromEntries(["mine", "quiet", "theirs", "rule"].map((c) => [c, style.getPropertyValue(`--${c}`).trim()]));
    this.#draw();
  }

  #draw() {
    const { canvas, bars, colours } = this;
    if (!colours) return;
    const context = canvas.getContext("2d");
    const ratio = devicePixelRatio || 1;
    const width = canvas.width / ratio;
    const height = canvas.height / ratio;
    const middle = Math.round(height * 0.62);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.fillStyle = colours.rule;
    context.fillRect(0, middle, width, 1);
    bars.forEach((bar, i) => {
      const x = width - (bars.length - i) * BAR;
      const up = bar.mine * (middle - 2);
      const down = bar.theirs * (height - middle - 3);
      if (up > 0.5) {
        context.fillStyle = colours.quiet;
        context.fillRect(x, middle - up, BAR - 1, up);
        context.globalAlpha = bar.probability;
        context.fillStyle = colours.mine;
        context.fillRect(x, middle - up, BAR - 1, up);
        context.globalAlpha = 1;
      }
      if (down > 0.5) {
        context.fillStyle = colours.theirs;
        context.fillRect(x, middle + 1, BAR - 1, down);
      }
    });
  }
}

/** A level as a height, 0-1: decibels, as ears have it. */
function loudness(level) {
  return Math.max(0, Math.min(1, (20 * Math.log10(level + 1e-6) + 58) / 48));
}
