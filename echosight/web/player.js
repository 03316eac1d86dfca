// The loudspeaker: plays the answer's speech as it comes, and knows what of it was heard.

export const OUTPUT_HZ = 24000;
const DRY_MS = 250; // The last piece of an answer can be late; so long after the last sample it counts as over.

export class Player {
  /**
   * @param {{began: (id: string, when: number) => void, position: (id: string, ms: number, over: boolean) => void,
   *          level: (level: number) => void}} on  `when` is on performance.now()'s clock.
   */
  constructor(on) {
    this.on = on;
    this.playing = false;
    this.context = null;
    this.cut = new Set();
    this.dryAt = 0;
  }

  /** Whether anything can be heard at all. */
  get able() {
    return Boolean(this.node);
  }

  /** Call it in answer to a click or a key: browsers keep pages silent until then. */
  async start() {
    if (this.context) return this.context.resume();
    this.context = new AudioContext({ sampleRate: OUTPUT_HZ, latencyHint: "interactive" });
    this.context.resume();
    await this.context.audioWorklet.addModule("/web/player.worklet.js");
    this.node = new AudioWorkletNode(this.context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.node.port.onmessage = ({ data }) => this.#report(data);
    this.node.connect(this.context.destination);
  }

  /** More speech of an item: an ArrayBuffer of PCM16. Speech of an item that was cut is not played any more. */
  play(id, pcm) {
    if (!this.node || this.cut.has(id)) return;
    this.playing = true;
    this.item = id;
    this.dryAt = 0;
    this.node.port.postMessage({ id, pcm }, [pcm]);
  }

  /** Silent at once, and nothing of it will be played any more. */
  clear() {
    if (this.item) this.cut.add(this.item);
    this.playing = false;
    this.node?.port.postMessage({ do: "clear" });
  }

  /** Silent at once, until `release` goes on at the same place or `clear` drops the rest. */
  hold() {
    this.node?.port.postMessage({ do: "hold" });
  }

  release() {
    this.node?.port.postMessage({ do: "release" });
  }

  get #latency() {
    return (this.context.outputLatency || this.context.baseLatency || 0) * 1000;
  }

  #report(data) {
    if (data.began) {
      const when = performance.now() + (data.at - this.context.currentTime) * 1000 + this.#latency;
      this.on.began(data.began, when);
      return;
    }
    this.on.level(data.level);
    if (!data.id || this.cut.has(data.id)) return;
    const now = performance.now();
    const dry = data.left === 0;
    if (!dry) this.dryAt = 0;
    else this.dryAt ||= now;
    const ms = (data.samples * 1000) / OUTPUT_HZ;
    const over = dry && now - this.dryAt > DRY_MS + this.#latency;
    if (this.playing) this.on.position(data.id, dry ? ms : Math.max(0, ms - this.#latency), over);
    if (over) this.playing = false;
  }
}
