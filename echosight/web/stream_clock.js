// Maps positions in the server's audio stream to this page's clock: the server reports times in ms of the stream.

const FRAME_MS = 20;
const MAX_FRAMES = 3000;

export class StreamClock {
  constructor() {
    this.restart(true);
  }

  /** A new connection. `aligned` is false where the server may already hold audio of an earlier connection. */
  restart(aligned) {
    this.sentMs = 0; // audio sent on this connection
    this.offsetMs = 0; // the server's position when this connection began
    this.frames = []; // [end of the frame in ms of this connection, performance.now() when it was recorded]
    this.unaligned = !aligned;
  }

  /** A frame was sent; the microphone recorded it at `recordedAt` on performance.now()'s clock. */
  sent(recordedAt) {
    this.sentMs += FRAME_MS;
    this.frames.push([this.sentMs, recordedAt]);
    if (this.frames.length > MAX_FRAMES) this.frames.splice(0, MAX_FRAMES / 2);
  }

  /** The server has received audio up to `audioMs`. The first report after a reconnect aligns the two streams. */
  received(audioMs) {
    if (this.unaligned) this.offsetMs = audioMs - this.sentMs;
    this.unaligned = false;
  }

  /** When the audio at `audioMs` of the server's stream was recorded, on performance.now()'s clock. */
  timeOf(audioMs) {
    const ms = audioMs - this.offsetMs;
    const frame = this.frames.find(([endMs]) => endMs >= ms) ?? this.frames.at(-1);
    return frame ? frame[1] - Math.max(0, frame[0] - ms) : performance.now();
  }
}
