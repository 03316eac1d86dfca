// The session's id. It lives as long as the tab; a duplicated tab gets an id of its own.

const KEY = "echosight-uid";

/** The id of this tab's session, the same after a reload. */
export async function sessionId() {
  try {
    const saved = sessionStorage.getItem(KEY);
    const id = saved && (await claim(saved)) ? saved : randomId();
    if (id !== saved) await claim(id);
    sessionStorage.setItem(KEY, id);
    return id;
  } catch {
    return randomId(); // Storage is disabled: the id lives as long as the page.
  }
}

function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Hold a lock on the id as long as the page lives. False where another tab holds it. */
async function claim(id) {
  if (!navigator.locks) return true;
  return new Promise((resolve) => {
    navigator.locks.request(id, { ifAvailable: true }, (lock) => {
      resolve(Boolean(lock));
      return lock && new Promise(() => {});
    });
  });
}
