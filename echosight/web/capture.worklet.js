// Microphone samples to PCM16, 20 ms at a time, each with its level.

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.size = Math.round(sampleRate / 50);
    this.pcm = new Int16Array(this.size);
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
      if (this.filled === this.size) this.ship();
    }
    return true;
  }

  ship() {
    const level = Math.sqrt(this.energy / this.size);
    this.port.postMessage({ pcm: this.pcm.buffer, level }, [this.pcm.buffer]);
    this.pcm = new Int16Array(this.size);
    this.filled = 0;
    this.energy = 0;
  }
}

registerProcessor("capture", Capture);
