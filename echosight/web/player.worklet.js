// A ring buffer of samples. It plays from the first chunk on, fades out within 4 ms when it is paused or cleared, and
// reports its position.

const FADE_S = 0.004;
// After it ran empty, it waits for this much audio or for this long: one longer gap sounds better than many short ones.
const REFILL_S = 0.06;
const MAX_REFILL_WAIT_S = 0.12;
const BLOCKS_PER_REPORT = 4;

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.ring = new Int16Array(1 << 17);
    // Both count samples from the start; modulo the ring's length they are indices of the ring.
    this.readCount = 0;
    this.writeCount = 0;
    this.items = []; // {id, start}: the sample at which each item begins
    this.currentId = null;
    this.gain = 0;
    this.paused = false;
    this.clearing = false;
    this.refilling = false;
    this.refillWait = 0; // samples
    this.energy = 0;
    this.blocks = 0;
    this.port.onmessage = ({ data }) => this.receive(data);
  }

  receive(message) {
    if (message.pcm) this.write(message.id, new Int16Array(message.pcm));
    else if (message.command === "clear") this.clearing = true;
    else this.paused = message.command === "pause";
  }

  write(id, pcm) {
    if (this.clearing) this.clear();
    if (this.items.at(-1)?.id !== id) this.items.push({ id, start: this.writeCount });
    while (this.writeCount - this.readCount + pcm.length > this.ring.length) this.grow();
    for (let i = 0; i < pcm.length; i++) this.ring[(this.writeCount + i) % this.ring.length] = pcm[i];
    this.writeCount += pcm.length;
  }

  grow() {
    const ring = new Int16Array(this.ring.length * 2);
    for (let i = this.readCount; i < this.writeCount; i++) ring[i % ring.length] = this.ring[i % this.ring.length];
    this.ring = ring;
  }

  clear() {
    this.readCount = this.writeCount;
    this.items = [];
    this.currentId = null;
    this.clearing = this.paused = this.refilling = false;
    this.gain = 0;
  }

  hasAudio() {
    const buffered = this.writeCount - this.readCount;
    if (!buffered) return false;
    if (this.refilling) {
      this.refillWait += 128;
      if (buffered < REFILL_S * sampleRate && this.refillWait < MAX_REFILL_WAIT_S * sampleRate) return false;
    }
    this.refilling = false;
    return true;
  }

  process(_, [output]) {
    const samples = output[0];
    const playing = this.hasAudio();
    const step = 1 / (FADE_S * sampleRate);
    const targetGain = this.clearing || this.paused ? 0 : 1;
    for (let i = 0; i < samples.length; i++) {
      this.gain += Math.max(-step, Math.min(step, targetGain - this.gain));
      if (this.gain <= 0 && targetGain === 0) break;
      if (!playing || this.readCount >= this.writeCount) break;
      samples[i] = (this.gain * this.ring[this.readCount++ % this.ring.length]) / 32768;
      this.energy += samples[i] * samples[i];
    }
    if (this.clearing && (this.gain <= 0 || !playing)) this.clear();
    if (playing) this.updateCurrentItem();
    this.report();
    return true;
  }

  /** Find the item that is being played, and report when its first sample was played. */
  updateCurrentItem() {
    while (this.items[1]?.start < this.readCount) this.items.shift();
    const item = this.items[0];
    if (item && item.id !== this.currentId && this.readCount > item.start) {
      this.currentId = item.id;
      this.port.postMessage({ started: item.id, time: currentTime });
    }
    if (this.readCount >= this.writeCount && !this.refilling) {
      this.refilling = true;
      this.refillWait = 0;
    }
  }

  report() {
    if (++this.blocks < BLOCKS_PER_REPORT) return;
    const level = Math.sqrt(this.energy / (this.blocks * 128));
    this.blocks = 0;
    this.energy = 0;
    const item = this.items[0];
    const end = Math.min(this.readCount, this.items[1]?.start ?? this.readCount);
    const samples = item && this.currentId === item.id ? end - item.start : 0;
    this.port.postMessage({ id: this.currentId, samples, remaining: this.writeCount - this.readCount, level });
  }
}

registerProcessor("player", Player);
