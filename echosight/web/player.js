// Plays the response's speech as it arrives, and reports how much of it was played.

export const OUTPUT_SAMPLE_RATE = 24000;
const DRAINED_MS = 250; // The last chunk of a response may be late: without audio for this long, it counts as finished.

export class Player {
  /**
   * @param {{started: (itemId: string, time: number) => void,
   *          position: (itemId: string, ms: number, drained: boolean) => void,
   *          level: (level: number) => void}} on  `time` is on performance.now()'s clock; `level` is RMS, 0-1
   */
  constructor(on) {
    this.on = on;
    this.playing = false;
    this.context = null;
    this.cleared = new Set(); // items of which nothing more is played
    this.emptySince = 0;
  }

  /** Whether audio can be played at all. */
  get ready() {
    return Boolean(this.node);
  }

  /** Call it in the handler of a click or a key: browsers keep a page silent until then. */
  async start() {
    if (this.context) return this.context.resume();
    this.context = new AudioContext({ sampleRate: OUTPUT_SAMPLE_RATE, latencyHint: "interactive" });
    this.context.resume();
    await this.context.audioWorklet.addModule("/web/player.worklet.js");
    this.node = new AudioWorkletNode(this.context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.node.port.onmessage = ({ data }) => this.#onReport(data);
    this.node.connect(this.context.destination);
  }

  /** Append speech of an item: an ArrayBuffer of PCM16. Ignored for an item that was cleared. */
  play(itemId, pcm) {
    if (!this.node || this.cleared.has(itemId)) return;
    this.playing = true;
    this.itemId = itemId;
    this.emptySince = 0;
    this.node.port.postMessage({ id: itemId, pcm }, [pcm]);
  }

  /** Silence at once; the rest of the current item is dropped. */
  clear() {
    if (this.itemId) this.cleared.add(this.itemId);
    this.playing = false;
    this.node?.port.postMessage({ command: "clear" });
  }

  /** Silence at once. `resume` continues at the same sample, `clear` drops the rest. */
  pause() {
    this.node?.port.postMessage({ command: "pause" });
  }

  resume() {
    this.node?.port.postMessage({ command: "resume" });
  }

  get #latencyMs() {
    return (this.context.outputLatency || this.context.baseLatency || 0) * 1000;
  }

  #onReport(report) {
    if (report.started) {
      const time = performance.now() + (report.time - this.context.currentTime) * 1000 + this.#latencyMs;
      this.on.started(report.started, time);
      return;
    }
    this.on.level(report.level);
    if (!report.id || this.cleared.has(report.id)) return;
    const now = performance.now();
    const empty = report.remaining === 0;
    if (!empty) this.emptySince = 0;
    else this.emptySince ||= now;
    const ms = (report.samples * 1000) / OUTPUT_SAMPLE_RATE;
    const drained = empty && now - this.emptySince > DRAINED_MS + this.#latencyMs;
    if (this.playing) this.on.position(report.id, empty ? ms : Math.max(0, ms - this.#latencyMs), drained);
    if (drained) this.playing = false;
  }
}
