// A ring of samples that plays from its first piece, falls silent within 4 ms when told to, and says how far it got.

const FADE = 0.004;
const REFILL = 0.06; // After it ran dry, so much is awaited, or ...
const PATIENCE = 0.12; // ... so long, before it goes on: many small gaps are worse than one.

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.ring = new Int16Array(1 << 17);
    this.read = 0; // Both count samples since the beginning; their place in the ring is the remainder.
    this.written = 0;
    this.items = []; // {id, from}: the sample at which each item begins
    this.now = null;
    this.gain = 0;
    this.held = false;
    this.clearing = false;
    this.waited = 0;
    this.dry = false;
    this.energy = 0;
    this.blocks = 0;
    this.port.onmessage = ({ data }) => this.take(data);
  }

  take(message) {
    if (message.pcm) this.add(message.id, new Int16Array(message.pcm));
    else if (message.do === "clear") this.clearing = true;
    else this.held = message.do === "hold";
  }

  add(id, pcm) {
    if (this.clearing) this.empty();
    const last = this.items.at(-1);
    if (last?.id !== id) this.items.push({ id, from: this.written });
    while (this.written - this.read + pcm.length > this.ring.length) this.grow();
    for (let i = 0; i < pcm.length; i++) this.ring[(this.written + i) % this.ring.length] = pcm[i];
    this.written += pcm.length;
  }

  grow() {
    const larger = new Int16Array(this.ring.length * 2);
    for (let i = this.read; i < this.written; i++) larger[i % larger.length] = this.ring[i % this.ring.length];
    this.ring = larger;
  }

  empty() {
    this.read = this.written;
    this.items = [];
    this.now = null;
    this.clearing = this.held = this.dry = false;
    this.gain = 0;
  }

  ready() {
    const waiting = this.written - this.read;
    if (!waiting) return false;
    if (this.dry) {
      this.waited += 128;
      if (waiting < REFILL * sampleRate && this.waited < PATIENCE * sampleRate) return false;
    }
    this.dry = false;
    return true;
  }

  process(_, [output]) {
    const out = output[0];
    const playing = this.ready();
    const step = 1 / (FADE * sampleRate);
    const target = this.clearing || this.held ? 0 : 1;
    for (let i = 0; i < out.length; i++) {
      this.gain += Math.max(-step, Math.min(step, target - this.gain));
      if (this.gain <= 0 && target === 0) break;
      if (!playing || this.read >= this.written) break;
      out[i] = (this.gain * this.ring[this.read++ % this.ring.length]) / 32768;
      this.energy += out[i] * out[i];
    }
    if (this.clearing && (this.gain <= 0 || !playing)) this.empty();
    if (playing) this.follow();
    this.report();
    return true;
  }

  /** Which item is being played; when it began. */
  follow() {
    while (this.items[1]?.from < this.read) this.items.shift();
    const item = this.items[0];
    if (item && item.id !== this.now && this.read > item.from) {
      this.now = item.id;
      this.port.postMessage({ began: item.id, at: currentTime });
    }
    if (this.read >= this.written && !this.dry) {
      this.dry = true;
      this.waited = 0;
    }
  }

  report() {
    if (++this.blocks < 4) return;
    const level = Math.sqrt(this.energy / (this.blocks * 128));
    this.blocks = 0;
    this.energy = 0;
    const item = this.items[0];
    const samples = item && this.now === item.id ? Math.min(this.read, this.items[1]?.from ?? this.read) - item.from : 0;
    this.port.postMessage({ id: this.now, samples, left: this.written - this.read, level });
  }
}

registerProcessor("player", Player);
