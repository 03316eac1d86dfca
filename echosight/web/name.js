// A name for the session that lasts as long as the tab, and is not shared with a copy of the tab.

const KEY = "echosight-uid";

export async function ownName() {
  try {
    const kept = sessionStorage.getItem(KEY);
    const name = kept && (await claim(kept)) ? kept : fresh();
    if (name !== kept) await claim(name);
    sessionStorage.setItem(KEY, name);
    return name;
  } catch {
    return fresh(); // Storage is switched off: the name lasts as long as the page.
  }
}

function fresh() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Hold the name for as long as the page lives; false where another page does. */
async function claim(name) {
  if (!navigator.locks) return true;
  return new Promise((done) => {
    navigator.locks.request(name, { ifAvailable: true }, (lock) => {
      done(Boolean(lock));
      return lock && new Promise(() => {});
    });
  });
}
