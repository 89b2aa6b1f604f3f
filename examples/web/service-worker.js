// Keeps a copy of the page in the browser, so that it works without a network after the first visit.
// A visit gets the server's version if that has arrived in WAIT milliseconds, else the kept one; never parts of both.

const WAIT = 3000;
const SCOPE = self.registration.scope;
const NAME = `detector ${SCOPE} `; // of the caches: this and a version; without one, the cache of the pointer
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

self.addEventListener("install", (event) => event.waitUntil(update().then(use).then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || !request.url.startsWith(SCOPE)) return;
  event.respondWith(request.mode === "navigate" ? visit(event) : answer(request));
});

/** The page for a new visit. A server that no longer has this page gets the browser back as it was. */
async function visit(event) {
  const updating = update().catch(() => undefined); // undefined: no network, or not this server
  event.waitUntil(updating);
  const newest = await Promise.race([updating, new Promise((go) => setTimeout(go, WAIT))]);
  if (newest === null) {
    await self.registration.unregister();
    await forget();
    return fetch(event.request);
  }
  if (newest) await use(newest);
  return answer(event.request);
}

/** Downloads the server's version unless it is kept already; returns the name of its cache, null if it has no page. */
async function update() {
  const response = await fetch(new URL("files.json", SCOPE), { cache: "no-store" });
  if (response.status === 404) return null;
  const { version, files } = await response.json();
  const cache = await caches.open(NAME + version);
  if (!(await cache.match(new URL("index.html", SCOPE)))) {
    await cache.addAll(files.map((file) => new Request(new URL(file, SCOPE), { cache: "no-cache" }))); // all or none
  }
  return NAME + version;
}

/** Makes a cache the one that is served from now on, and removes all others. */
async function use(name) {
  const pointer = await caches.open(NAME);
  await pointer.put(SCOPE, new Response(name));
  await forget([NAME, name]);
}

async function forget(except = []) {
  const names = (await caches.keys()).filter((name) => name.startsWith(NAME) && !except.includes(name));
  await Promise.all(names.map((name) => caches.delete(name)));
}

/** The kept file, or else the server's. With the headers that let the network run in several threads. */
async function answer(request) {
  const pointer = await (await caches.open(NAME)).match(SCOPE);
  const cache = pointer && (await caches.open(await pointer.text()));
  const url = new URL(request.url);
  const kept = await cache?.match(url.href.split(/[?#]/)[0] === SCOPE ? new URL("index.html", SCOPE) : url, { ignoreSearch: true });
  if (!kept) return fetch(request);
  const headers = new Headers(kept.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  return new Response(kept.body, { status: kept.status, headers });
}
