// The WebSocket to the server: subscribes, receives records and speech, and reconnects after a loss.

const RETRY_DELAYS_MS = [250, 500, 1000, 2000, 4000];
const FULL_RETRY_MS = 4000;
const RECEIVE_TIMEOUT_MS = 8000; // While audio is sent, the server reports a level every 32 ms.
const CONGESTED_BYTES = 512 * 1024;
const CLOSE_TRY_AGAIN_LATER = 1013;

export class Connection {
  /**
   * @param {{uid: string, token: () => string, subscribe: () => object}} session  `subscribe` makes the first message
   * @param {{record: (record: object, pcm?: ArrayBuffer) => void, open: () => void,
   *          lost: (reason: {kind: "lost"|"full"|"token", text?: string}) => void}} on
   */
  constructor(session, on) {
    this.session = session;
    this.on = on;
    this.attempts = 0;
    this.enabled = false; // the page wants a connection
    addEventListener("online", () => this.enabled && !this.ready && this.#retry(0));
    addEventListener("offline", () => this.enabled && this.#drop({ kind: "lost" }));
  }

  /** The server has accepted the subscription, and messages can be sent. */
  get ready() {
    return this.accepted && this.socket?.readyState === WebSocket.OPEN;
  }

  /** Much is still waiting to be sent: send no images now. */
  get congested() {
    return (this.socket?.bufferedAmount ?? 0) > CONGESTED_BYTES;
  }

  open() {
    if (this.enabled) return;
    this.enabled = true;
    this.attempts = 0;
    this.#connect();
  }

  close() {
    this.enabled = false;
    clearTimeout(this.timer);
    this.#detach()?.close(1000);
  }

  /** Send an object as JSON or an ArrayBuffer of PCM16. False where the connection is not ready. */
  send(message) {
    if (this.ready) this.socket.send(message instanceof ArrayBuffer ? message : JSON.stringify(message));
    return this.ready;
  }

  /** Reconnect if the server has been silent for too long. Call it regularly while audio is sent. */
  checkAlive() {
    if (this.ready && performance.now() - this.receivedAt > RECEIVE_TIMEOUT_MS) this.#drop({ kind: "lost" });
  }

  #connect() {
    const url = new URL("/ws/stream", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("uid", this.session.uid);
    if (this.session.token()) url.searchParams.set("token", this.session.token());
    const socket = (this.socket = new WebSocket(url));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(JSON.stringify(this.session.subscribe()));
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = (event) => this.#onClose(event);
  }

  #receive(data) {
    this.receivedAt = performance.now();
    if (!this.accepted) {
      this.accepted = true;
      this.attempts = 0;
      this.on.open();
    }
    if (data instanceof ArrayBuffer) {
      const record = this.awaitingAudio;
      this.awaitingAudio = null;
      if (record) this.on.record(record, data);
      return;
    }
    const record = JSON.parse(data);
    if (record.choices?.[0]?.audio === "binary") this.awaitingAudio = record;
    else this.on.record(record);
  }

  async #onClose(event) {
    const wasAccepted = this.accepted;
    this.#detach();
    if (!this.enabled) return;
    if (event.code === CLOSE_TRY_AGAIN_LATER) return this.#retry(FULL_RETRY_MS, { kind: "full", text: event.reason });
    const reason = wasAccepted ? { kind: "lost" } : await this.#diagnose();
    if (!this.enabled) return;
    if (reason.kind === "token") {
      this.enabled = false;
      this.on.lost(reason);
      return;
    }
    this.#retry(this.#nextDelayMs(), reason);
  }

  /** Browsers hide the status of a refused WebSocket handshake; an HTTP request shows it. */
  async #diagnose() {
    try {
      const { status } = await fetchServerInfo(this.session.token());
      return { kind: status === 401 ? "token" : "lost" };
    } catch {
      return { kind: "lost" };
    }
  }

  #nextDelayMs() {
    const delayMs = RETRY_DELAYS_MS[Math.min(this.attempts++, RETRY_DELAYS_MS.length - 1)];
    return delayMs * (0.8 + 0.4 * Math.random());
  }

  #drop(reason) {
    this.#detach()?.close();
    this.#retry(this.#nextDelayMs(), reason);
  }

  #retry(delayMs, reason) {
    clearTimeout(this.timer);
    this.#detach()?.close();
    if (reason) this.on.lost(reason);
    this.timer = setTimeout(() => this.enabled && this.#connect(), delayMs);
  }

  /** Stop listening to the socket; returns it, so that the caller can close it. */
  #detach() {
    const { socket } = this;
    if (socket) socket.onopen = socket.onmessage = socket.onclose = null;
    this.socket = this.awaitingAudio = null;
    this.accepted = false;
    return socket;
  }
}

/** The server's description of itself: {status, body}. Raises if the server cannot be reached. */
export async function fetchServerInfo(token) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch("/", { headers, cache: "no-store" });
  return { status: response.status, body: response.ok ? await response.json() : {} };
}
