// The socket to the server: subscribes, reads records and speech, and comes back by itself when it was lost.

const WAITS_MS = [250, 500, 1000, 2000, 4000];
const FULL_WAIT_MS = 4000;
const SILENT_MS = 8000; // The server tells of every 32 ms that it hears: so long without is a lost connection.
const CLOGGED_BYTES = 512 * 1024;

export class Link {
  /**
   * @param {{uid: string, token: () => string, hello: () => object}} who
   * @param {{record: (record: object, pcm?: ArrayBuffer) => void, open: () => void,
   *          lost: (why: {kind: string, text?: string, waitMs?: number}) => void}} on
   */
  constructor(who, on) {
    this.who = who;
    this.on = on;
    this.tries = 0;
    this.wanted = false;
    addEventListener("online", () => this.wanted && !this.ready && this.#retry(0));
    addEventListener("offline", () => this.wanted && this.#drop({ kind: "lost" }));
  }

  get ready() {
    return this.welcome && this.socket?.readyState === WebSocket.OPEN;
  }

  /** What was sent is still on its way: pictures had better wait. */
  get clogged() {
    return (this.socket?.bufferedAmount ?? 0) > CLOGGED_BYTES;
  }

  open() {
    if (this.wanted) return;
    this.wanted = true;
    this.tries = 0;
    this.#connect();
  }

  close() {
    this.wanted = false;
    clearTimeout(this.timer);
    this.#forget()?.close(1000);
  }

  send(message) {
    if (this.ready) this.socket.send(message instanceof ArrayBuffer ? message : JSON.stringify(message));
    return this.ready;
  }

  /** Call it now and then while sound is sent. */
  watch() {
    if (this.ready && performance.now() - this.heardAt > SILENT_MS) this.#drop({ kind: "lost" });
  }

  #connect() {
    const url = new URL("/ws/stream", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("uid", this.who.uid);
    if (this.who.token()) url.searchParams.set("token", this.who.token());
    const socket = (this.socket = new WebSocket(url));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(JSON.stringify(this.who.hello()));
    socket.onmessage = ({ data }) => this.#take(data);
    socket.onclose = (event) => this.#closed(event);
  }

  #take(data) {
    this.heardAt = performance.now();
    if (!this.welcome) {
      this.welcome = true;
      this.tries = 0;
      this.on.open();
    }
    if (data instanceof ArrayBuffer) {
      const record = this.awaiting;
      this.awaiting = null;
      if (record) this.on.record(record, data);
      return;
    }
    const record = JSON.parse(data);
    if (record.choices?.[0]?.audio === "binary") this.awaiting = record;
    else this.on.record(record);
  }

  async #closed(event) {
    const known = this.welcome;
    this.#forget();
    if (!this.wanted) return;
    if (event.code === 1013) return this.#retry(FULL_WAIT_MS, { kind: "full", text: event.reason });
    const why = known ? { kind: "lost" } : await this.#diagnose();
    if (!this.wanted) return;
    if (why.kind === "token") {
      this.wanted = false;
      this.on.lost(why);
      return;
    }
    this.#retry(this.#wait(), why);
  }

  /** A refused handshake says nothing to a page; asking over HTTP does. */
  async #diagnose() {
    try {
      const { status } = await about(this.who.token());
      return { kind: status === 401 ? "token" : "lost" };
    } catch {
      return { kind: "lost" };
    }
  }

  #wait() {
    const wait = WAITS_MS[Math.min(this.tries++, WAITS_MS.length - 1)];
    return wait * (0.8 + 0.4 * Math.random());
  }

  #drop(why) {
    this.#forget()?.close();
    this.#retry(this.#wait(), why);
  }

  #retry(waitMs, why) {
    clearTimeout(this.timer);
    this.#forget()?.close();
    if (why) this.on.lost({ ...why, waitMs });
    this.timer = setTimeout(() => this.wanted && this.#connect(), waitMs);
  }

  #forget() {
    const { socket } = this;
    if (socket) socket.onopen = socket.onmessage = socket.onclose = null;
    this.socket = this.awaiting = null;
    this.welcome = false;
    return socket;
  }
}

/** What the server says about itself: {status, body}. Raises where it cannot be reached. */
export async function about(token) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch("/", { headers, cache: "no-store" });
  return { status: response.status, body: response.ok ? await response.json() : {} };
}
