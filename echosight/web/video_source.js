// Takes frames of a camera or a screen at a chosen rate, and skips those in which nothing changed.

const THUMBNAIL = { width: 32, height: 24 };
const MIN_MEAN_CHANGE = 3; // grey levels of 255, mean over the frame
const MIN_MAX_CHANGE = 28; // grey levels of 255, in the thumbnail's pixel that changed most

export class VideoSource {
  /**
   * @param {HTMLVideoElement} video  shows the preview
   * @param {{frame: (jpeg: Blob, size: {width: number, height: number}) => void, lost: () => void}} on
   */
  constructor(video, on) {
    this.video = video;
    this.on = on;
    this.canvas = document.createElement("canvas");
    this.thumbnailCanvas = Object.assign(document.createElement("canvas"), THUMBNAIL);
    this.fps = 0;
    this.maxWidth = 640;
  }

  get live() {
    return Boolean(this.stream);
  }

  /** Raises what getUserMedia raises. */
  async openCamera({ deviceId, facingMode }) {
    const device = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: facingMode ?? "user" };
    await this.#open(await navigator.mediaDevices.getUserMedia({ video: { ...device, width: { ideal: 1280 } } }));
  }

  /** Raises what getDisplayMedia raises. */
  async openScreen() {
    await this.#open(await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: 5 } }));
  }

  async #open(stream) {
    this.close();
    this.stream = stream;
    const [track] = stream.getVideoTracks();
    track.onended = () => this.on.lost();
    this.facingMode = track.getSettings().facingMode;
    this.video.srcObject = stream;
    await this.video.play();
    this.#schedule();
  }

  close() {
    clearTimeout(this.timer);
    for (const track of this.stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    this.stream = null;
    this.lastThumbnail = null;
    this.video.srcObject = null;
  }

  /** Frames per second from now on; 0 takes none. */
  setFrameRate(fps) {
    if (fps === this.fps) return;
    this.fps = fps;
    if (this.live) this.#schedule();
  }

  /** Take the next frame even if nothing changed. */
  forceNextFrame() {
    this.lastThumbnail = null;
  }

  /** Take a frame now, unless nothing changed since the last one. */
  async takeFrame() {
    if (!this.live || !this.video.videoWidth || this.encoding) return;
    const thumbnail = this.#thumbnail();
    if (!this.#hasChanged(thumbnail)) return;
    this.encoding = true;
    const scale = Math.min(1, this.maxWidth / this.video.videoWidth);
    const size = { width: Math.round(this.video.videoWidth * scale), height: Math.round(this.video.videoHeight * scale) };
    Object.assign(this.canvas, size);
    this.canvas.getContext("2d").drawImage(this.video, 0, 0, size.width, size.height);
    const blob = await new Promise((resolve) => this.canvas.toBlob(resolve, "image/jpeg", 0.8));
    this.encoding = false;
    if (!blob || !this.live) return;
    this.lastThumbnail = thumbnail;
    this.on.frame(blob, size);
  }

  #schedule() {
    clearTimeout(this.timer);
    if (!this.fps) return;
    this.takeFrame();
    this.timer = setTimeout(() => this.#schedule(), 1000 / this.fps);
  }

  /** The current frame in grey levels, 32 x 24. */
  #thumbnail() {
    const context = this.thumbnailCanvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(this.video, 0, 0, THUMBNAIL.width, THUMBNAIL.height);
    const { data } = context.getImageData(0, 0, THUMBNAIL.width, THUMBNAIL.height);
    return Float32Array.from({ length: data.length / 4 }, (_, i) => (data[4 * i] + 2 * data[4 * i + 1] + data[4 * i + 2]) / 4);
  }

  #hasChanged(thumbnail) {
    if (!this.lastThumbnail) return true;
    let sum = 0;
    let max = 0;
    for (let i = 0; i < thumbnail.length; i++) {
      const difference = Math.abs(thumbnail[i] - this.lastThumbnail[i]);
      sum += difference;
      max = Math.max(max, difference);
    }
    return sum / thumbnail.length > MIN_MEAN_CHANGE || max > MIN_MAX_CHANGE;
  }
}

/** The message that sends a JPEG to the server. */
export async function imageMessage(blob) {
  const url = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });
  const data = url.slice(url.indexOf(",") + 1);
  return { messages: [{ role: "user", content: [{ type: "image_data", image_data: { data, type: 2 } }] }] };
}
