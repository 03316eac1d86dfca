// The microphone: PCM16 in frames of 20 ms, and a gate that detects at once when the user talks over a response.

export const INPUT_SAMPLE_RATE = 16000;
const MIN_LOUD_FRAMES = 3; // 60 ms
const MIN_LEVEL = 0.016; // -36 dBFS
const MIN_RATIO_TO_ECHO = 2.8; // 9 dB

export class Microphone {
  /** @param {{frame: (pcm: ArrayBuffer, level: number) => void, lost: () => void}} on  `level` is RMS, 0-1 */
  constructor(on) {
    this.on = on;
    this.muted = false;
    this.sampleRate = INPUT_SAMPLE_RATE;
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
    await this.#capture(stream);
  }

  /** Some browsers cannot resample a microphone to 16 kHz: then the server resamples. */
  async #capture(stream) {
    let context = new AudioContext({ sampleRate: INPUT_SAMPLE_RATE, latencyHint: "interactive" });
    let source;
    try {
      source = context.createMediaStreamSource(stream);
    } catch {
      context.close();
      context = new AudioContext({ latencyHint: "interactive" });
      source = context.createMediaStreamSource(stream);
    }
    this.context = context;
    this.sampleRate = context.sampleRate;
    context.resume();
    await context.audioWorklet.addModule("/web/capture.worklet.js");
    if (this.stream !== stream) return void context.close();
    const node = new AudioWorkletNode(context, "capture", { outputChannelCount: [1] });
    node.port.onmessage = ({ data }) => {
      if (this.stream === stream) this.on.frame(data.pcm, data.level);
    };
    source.connect(node);
    node.connect(context.destination); // Its output is silent. Some browsers do not run a node without a destination.
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

/** Detects speech over a response: 60 ms that are louder than the response's echo in the microphone. */
export class BargeInGate {
  constructor() {
    this.echo = 0; // RMS level, decays slowly
    this.loudFrames = 0;
    this.peak = 0;
  }

  /** Call it for each frame while a response plays. True in the frame in which speech is detected. */
  detects(level) {
    const isLoud = level > Math.max(MIN_LEVEL, this.echo * MIN_RATIO_TO_ECHO);
    this.loudFrames = isLoud ? this.loudFrames + 1 : 0;
    this.peak = isLoud ? Math.max(this.peak, level) : 0;
    if (!isLoud) this.echo = Math.max(level, this.echo * 0.995);
    return this.loudFrames === MIN_LOUD_FRAMES;
  }

  /** The server found no speech: levels up to this peak are echo or noise. */
  onFalseAlarm() {
    this.echo = Math.max(this.echo, this.peak);
  }

  reset() {
    this.loudFrames = this.peak = 0;
  }
}
