// The detector in a thread of its own, so that the page answers while the network runs.
// Messages in: {id, image}, RGBA pixels. Messages out: {meta}, {progress}, {failed}, then {id, result} or {id, error}.

import * as ort from "./ort/ort.wasm.min.mjs";
import { Detector } from "./detector.mjs";

let detector;

self.onmessage = async ({ data: { id, image } }) => {
  try {
    self.postMessage({ id, result: await detector.run(image) });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};

try {
  detector = await Detector.load(ort, new URL(".", import.meta.url), (progress) => self.postMessage({ progress }));
  self.postMessage({ meta: detector.meta });
} catch (error) {
  self.postMessage({ failed: error.message });
}
