// Converts the microphone's samples to PCM16 frames of 20 ms, each with its RMS level.

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.frameLength = Math.round(sampleRate / 50);
    this.startFrame();
  }

  startFrame() {
    this.pcm = new Int16Array(this.frameLength);
    this.filled = 0;
    this.energy = 0;
  }

  process([input]) {
    const samples = input[0];
    if (!samples) return true;
    for (let i = 0; i < samples.length; i++) {
      const sample = Math.max(-1, Math.min(1, samples[i]));
      this.energy += sample * sample;
      this.pcm[this.filled++] = sample * (sample < 0 ? 32768 : 32767);
      if (this.filled === this.frameLength) this.sendFrame();
    }
    return true;
  }

  sendFrame() {
    const level = Math.sqrt(this.energy / this.frameLength);
    this.port.postMessage({ pcm: this.pcm.buffer, level }, [this.pcm.buffer]);
    this.startFrame();
  }
}

registerProcessor("capture", Capture);
