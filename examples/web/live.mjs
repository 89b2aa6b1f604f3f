// Moving sources: the camera, and video files. Each frame is drawn on a canvas and handed on.

/** Why the camera cannot be used, in a sentence; empty if it can. It is not switched on, and nobody is asked. */
export async function cameraProblem() {
  if (!window.isSecureContext || !navigator.mediaDevices) return "The live camera needs https or localhost. A photo can be taken where images are chosen.";
  const devices = await navigator.mediaDevices.enumerateDevices();
  if (!devices.some(({ kind }) => kind === "videoinput")) return "This device has no camera.";
  const permission = await navigator.permissions?.query({ name: "camera" }).catch(() => null); // not in every browser
  return permission?.state === "denied" ? "The camera is blocked for this page in the browser's settings." : "";
}

export class Live {
  /** @param {HTMLVideoElement} video @param {(frame: HTMLCanvasElement) => Promise<void>} show handles one frame. */
  constructor(video, show) {
    Object.assign(this, { video, show, frame: document.createElement("canvas"), opened: null, moved: false });
    video.addEventListener("seeked", () => (this.moved = true));
  }

  get on() {
    return this.opened !== null;
  }

  /** Shows the camera's image until `stop`. Raises what the browser raises without a camera or permission. */
  async camera() {
    this.stop();
    const opened = (this.opened = {});
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      this.stream = stream;
      if (this.opened !== opened) return this.release(); // stopped meanwhile
      this.video.srcObject = stream;
      await this.run(opened);
    } catch (error) {
      if (this.opened !== opened) return; // stopped meanwhile
      this.stop();
      throw error;
    }
  }

  /** Plays a video file, over and over, until `stop`. Raises an Error if the browser cannot play it. */
  async file(file) {
    this.stop();
    const opened = (this.opened = {});
    this.video.src = this.url = URL.createObjectURL(file);
    this.video.loop = true;
    try {
      await this.run(opened);
    } catch {
      if (this.opened !== opened) return; // stopped meanwhile
      this.stop();
      throw new Error(`${file.name} is not a video that this browser can play`);
    }
  }

  async run(opened) {
    const { video, frame } = this;
    await video.play();
    while (this.opened === opened) {
      if ((!video.paused || this.moved) && video.videoWidth) {
        this.moved = false;
        Object.assign(frame, { width: video.videoWidth, height: video.videoHeight });
        frame.getContext("2d", { willReadFrequently: true }).drawImage(video, 0, 0);
        await this.show(frame);
      }
      await new Promise(requestAnimationFrame);
    }
  }

  stop() {
    this.opened = null;
    this.release();
  }

  release() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.video.srcObject = null;
    if (this.url) {
      URL.revokeObjectURL(this.url);
      this.url = null;
      this.video.removeAttribute("src");
      this.video.load();
    }
  }
}
