// The images of the session and their boxes, kept in the browser (IndexedDB) until they are removed.

const STORE = "images";

/** A request of IndexedDB as a promise. */
const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

export class Session {
  /** The session of this page's folder. Raises an Error where the browser keeps nothing, as in some private windows. */
  static async open() {
    const request = indexedDB.open(`detector ${new URL(".", location.href).pathname}`, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    return new Session(await done(request));
  }

  constructor(database) {
    this.database = database;
  }

  store(mode) {
    return this.database.transaction(STORE, mode).objectStore(STORE);
  }

  /** All images, the oldest first: {id, name, file, thumbnail, width, height, model, result, labels}. */
  all() {
    return done(this.store("readonly").getAll());
  }

  /** Keeps a new or changed image; returns its id. */
  put(image) {
    return done(this.store("readwrite").put(image));
  }

  remove(id) {
    return done(this.store("readwrite").delete(id));
  }

  clear() {
    return done(this.store("readwrite").clear());
  }
}

const place = (name) => `detector ${new URL(".", location.href).pathname} ${name}`;

/** A small setting of this page's folder, null if there is none or the browser keeps nothing. */
export function readSetting(name) {
  try {
    return JSON.parse(localStorage.getItem(place(name)));
  } catch {
    return null;
  }
}

export function writeSetting(name, value) {
  try {
    localStorage.setItem(place(name), JSON.stringify(value));
  } catch {
    // A browser that keeps nothing: the next visit starts with the defaults.
  }
}
