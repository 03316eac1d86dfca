// The audio levels of the last seconds: the microphone above the axis, the response below it. The colour of the upper
// bars shows the probability of speech that the server reports.

const STEP_MS = 40;
const BAR_PX = 3; // including the gap
const COLOURS = ["user", "noise", "assistant", "axis"];

export class LevelMeter {
  /** `meter` is the element with role "meter" that gives screen readers the probability of speech. */
  constructor(canvas, meter) {
    this.canvas = canvas;
    this.meter = meter;
    this.bars = [];
    this.next = { microphone: 0, playback: 0, probability: 0 }; // the bar that is being measured
    this.running = false;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#readColours());
    new ResizeObserver(() => this.#resize()).observe(canvas);
  }

  start() {
    if (this.running) return;
    this.running = true;
    this.steppedAt = performance.now();
    const onFrame = (now) => {
      if (!this.running) return;
      this.#advance(now);
      requestAnimationFrame(onFrame);
    };
    requestAnimationFrame(onFrame);
  }

  stop() {
    this.running = false;
    this.bars = [];
    this.#draw();
    this.#report(0);
  }

  /** RMS level of a microphone frame, 0-1. */
  microphone(level) {
    this.next.microphone = Math.max(this.next.microphone, barHeight(level));
  }

  /** RMS level of the response's audio, 0-1. */
  playback(level) {
    this.next.playback = Math.max(this.next.playback, barHeight(level));
  }

  probability(probability) {
    this.next.probability = probability;
    this.#report(probability);
  }

  /** Update the value that screen readers see, only when it changed by 10 percent. */
  #report(probability) {
    const percent = Math.round(probability * 100);
    if (Math.abs(percent - (this.reported ?? 0)) < 10 && percent !== 0) return;
    this.reported = percent;
    this.meter.setAttribute("aria-valuenow", percent);
  }

  #advance(now) {
    if (now - this.steppedAt > 1000) this.steppedAt = now - STEP_MS; // The page was hidden.
    let added = false;
    while (now - this.steppedAt >= STEP_MS) {
      this.steppedAt += STEP_MS;
      this.bars.push(this.next);
      this.next = { microphone: 0, playback: 0, probability: this.next.probability };
      added = true;
    }
    const maxBars = Math.ceil(this.canvas.clientWidth / BAR_PX);
    if (this.bars.length > maxBars) this.bars.splice(0, this.bars.length - maxBars);
    if (added) this.#draw();
  }

  #resize() {
    const ratio = devicePixelRatio || 1;
    this.canvas.width = this.canvas.clientWidth * ratio;
    this.canvas.height = this.canvas.clientHeight * ratio;
    this.#readColours();
  }

  #readColours() {
    const style = getComputedStyle(this.canvas);
    this.colours = Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    this.#draw();
  }

  #draw() {
    const { canvas, bars, colours } = this;
    if (!colours) return;
    const context = canvas.getContext("2d");
    const ratio = devicePixelRatio || 1;
    const width = canvas.width / ratio;
    const height = canvas.height / ratio;
    const axis = Math.round(height * 0.62);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.fillStyle = colours.axis;
    context.fillRect(0, axis, width, 1);
    bars.forEach((bar, i) => {
      const x = width - (bars.length - i) * BAR_PX;
      const up = bar.microphone * (axis - 2);
      const down = bar.playback * (height - axis - 3);
      if (up > 0.5) {
        context.fillStyle = colours.noise;
        context.fillRect(x, axis - up, BAR_PX - 1, up);
        context.globalAlpha = bar.probability;
        context.fillStyle = colours.user;
        context.fillRect(x, axis - up, BAR_PX - 1, up);
        context.globalAlpha = 1;
      }
      if (down > 0.5) {
        context.fillStyle = colours.assistant;
        context.fillRect(x, axis + 1, BAR_PX - 1, down);
      }
    });
  }
}

/** The height of a bar, 0-1, from a linear level: -58 dBFS is 0, -10 dBFS is 1. */
function barHeight(level) {
  return Math.max(0, Math.min(1, (20 * Math.log10(level + 1e-6) + 58) / 48));
}
