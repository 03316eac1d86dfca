// The microphone: PCM16 in pieces of 20 ms, and a gate that notices at once when somebody talks over the answer.

export const HEARD_HZ = 16000;
const LOUD_FRAMES = 3;
const QUIETEST = 0.016; // -36 dBFS
const ABOVE_ECHO = 2.8; // 9 dB

export class Microphone {
  /** @param {{frame: (pcm: ArrayBuffer, level: number) => void, lost: () => void}} on */
  constructor(on) {
    this.on = on;
    this.muted = false;
    this.rate = HEARD_HZ;
  }

  get live() {
    return Boolean(this.stream);
  }

  /** Raises what getUserMedia raises. */
  async start({ deviceId, echoCancellation }) {
    const audio = { channelCount: 1, echoCancellation, noiseSuppression: echoCancellation, autoGainControl: echoCancellation };
    if (deviceId) audio.deviceId = { exact: deviceId };
    const stream = await navigator.mediaDevices.getUserMedia({ audio });
    this.stop();
    this.stream = stream;
    stream.getAudioTracks()[0].onended = () => this.on.lost();
    await this.#listen(stream);
  }

  /** Some browsers cannot bring a microphone to 16 kHz by themselves; then the server does. */
  async #listen(stream) {
    let context = new AudioContext({ sampleRate: HEARD_HZ, latencyHint: "interactive" });
    let source;
    try {
      source = context.createMediaStreamSource(stream);
    } catch {
      context.close();
      context = new AudioContext({ latencyHint: "interactive" });
      source = context.createMediaStreamSource(stream);
    }
    this.context = context;
    this.rate = context.sampleRate;
    context.resume();
    await context.audioWorklet.addModule("/web/capture.worklet.js");
    if (this.stream !== stream) return void context.close();
    const node = new AudioWorkletNode(context, "capture", { outputChannelCount: [1] });
    node.port.onmessage = ({ data }) => {
      if (this.stream === stream) this.on.frame(data.pcm, data.level);
    };
    source.connect(node);
    node.connect(context.destination); // It puts out nothing; unconnected it would not run everywhere.
  }

  stop() {
    const { stream, context } = this;
    this.stream = this.context = null;
    for (const track of stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    context?.close();
  }
}

/** Opens when the microphone is louder, for 60 ms, than the answer's own echo in it. */
export class Gate {
  constructor() {
    this.echo = 0;
    this.loud = 0;
    this.peak = 0;
  }

  /** One frame's level while the answer plays; true when somebody talks over it. */
  opens(level) {
    const above = level > Math.max(QUIETEST, this.echo * ABOVE_ECHO);
    this.loud = above ? this.loud + 1 : 0;
    this.peak = above ? Math.max(this.peak, level) : 0;
    if (!above) this.echo = Math.max(level, this.echo * 0.995);
    return this.loud === LOUD_FRAMES;
  }

  /** It was nobody: what was that loud is echo or noise. */
  mistaken() {
    this.echo = Math.max(this.echo, this.peak);
  }

  quiet() {
    this.loud = this.peak = 0;
  }
}
