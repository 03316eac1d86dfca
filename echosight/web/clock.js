// When each sample of the microphone was spoken, on this page's clock: the server tells times in its stream's samples.

const FRAME_MS = 20;
const REMEMBERED = 3000;

export class SpokenClock {
  constructor() {
    this.ms = 0;
    this.base = 0;
    this.marks = [];
    this.unsure = false;
  }

  /** A new stream; `known` false: the server may have heard some of it before. */
  restart(known) {
    Object.assign(this, { ms: 0, base: 0, marks: [], unsure: !known });
  }

  /** A frame was sent that was spoken at `when`. */
  sent(when) {
    this.ms += FRAME_MS;
    this.marks.push([this.ms, when]);
    if (this.marks.length > REMEMBERED) this.marks.splice(0, REMEMBERED / 2);
  }

  /** The server has heard up to `audioMs`; about what was sent by now. */
  heard(audioMs) {
    if (this.unsure) this.base = audioMs - this.ms;
    this.unsure = false;
  }

  /** When the sample at `audioMs` of the server's stream was spoken. */
  at(audioMs) {
    const ms = audioMs - this.base;
    const mark = this.marks.find(([end]) => end >= ms) ?? this.marks.at(-1);
    return mark ? mark[1] - Math.max(0, mark[0] - ms) : performance.now();
  }
}
