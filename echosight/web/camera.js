// Pictures of a camera or a screen: at two rates, and none while nothing changes.

const THUMB = { width: 32, height: 24 };
const CHANGED_MEAN = 3; // of 255, over the whole picture
const CHANGED_SPOT = 28; // of 255, in the cell that changed most

export class Sight {
  /**
   * @param {HTMLVideoElement} video
   * @param {{picture: (blob: Blob, size: {width: number, height: number}) => void, lost: () => void}} on
   */
  constructor(video, on) {
    this.video = video;
    this.on = on;
    this.canvas = document.createElement("canvas");
    this.thumb = Object.assign(document.createElement("canvas"), THUMB);
    this.rate = 0;
    this.width = 640;
  }

  get live() {
    return Boolean(this.stream);
  }

  /** Raises what getUserMedia raises. */
  async camera({ deviceId, facingMode }) {
    const choice = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: facingMode ?? "user" };
    await this.#show(await navigator.mediaDevices.getUserMedia({ video: { ...choice, width: { ideal: 1280 } } }));
  }

  async screen() {
    await this.#show(await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: 5 } }));
  }

  async #show(stream) {
    this.stop();
    this.stream = stream;
    const [track] = stream.getVideoTracks();
    track.onended = () => this.on.lost();
    this.facing = track.getSettings().facingMode;
    this.video.srcObject = stream;
    await this.video.play();
    this.#schedule();
  }

  stop() {
    clearTimeout(this.timer);
    for (const track of this.stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    this.stream = null;
    this.seen = null;
    this.video.srcObject = null;
  }

  /** Pictures a second from now on. */
  pace(rate) {
    if (rate === this.rate) return;
    this.rate = rate;
    if (this.live) this.#schedule();
  }

  /** The next picture is sent even if nothing changed. */
  forget() {
    this.seen = null;
  }

  /** A picture now, if anything changed since the last one. */
  async look() {
    if (!this.live || !this.video.videoWidth || this.looking) return;
    const seen = this.#glance();
    if (!this.#differs(seen)) return;
    this.looking = true;
    const scale = Math.min(1, this.width / this.video.videoWidth);
    const size = { width: Math.round(this.video.videoWidth * scale), height: Math.round(this.video.videoHeight * scale) };
    Object.assign(this.canvas, size);
    this.canvas.getContext("2d").drawImage(this.video, 0, 0, size.width, size.height);
    const blob = await new Promise((done) => this.canvas.toBlob(done, "image/jpeg", 0.8));
    this.looking = false;
    if (!blob || !this.live) return;
    this.seen = seen;
    this.on.picture(blob, size);
  }

  #schedule() {
    clearTimeout(this.timer);
    if (!this.rate) return;
    this.look();
    this.timer = setTimeout(() => this.#schedule(), 1000 / this.rate);
  }

  #glance() {
    const context = this.thumb.getContext("2d", { willReadFrequently: true });
    context.drawImage(this.video, 0, 0, THUMB.width, THUMB.height);
    const { data } = context.getImageData(0, 0, THUMB.width, THUMB.height);
    return Float32Array.from({ length: data.length / 4 }, (_, i) => (data[4 * i] + 2 * data[4 * i + 1] + data[4 * i + 2]) / 4);
  }

  #differs(seen) {
    if (!this.seen) return true;
    let sum = 0;
    let most = 0;
    for (let i = 0; i < seen.length; i++) {
      const difference = Math.abs(seen[i] - this.seen[i]);
      sum += difference;
      most = Math.max(most, difference);
    }
    return sum / seen.length > CHANGED_MEAN || most > CHANGED_SPOT;
  }
}

/** A picture as a message for the server. */
export async function pictureMessage(blob) {
  const url = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
  const data = url.slice(url.indexOf(",") + 1);
  return { messages: [{ role: "user", content: [{ type: "image_data", image_data: { data, type: 2 } }] }] };
}
