// A writer of zip archives, without compression: images are compressed already.

const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});
const MOST_BYTES = 0xffffffff;
const MOST_FILES = 0xffff;
const UTF8 = 0x0800; // names are in UTF-8
const VERSION = 20; // of the format that a reader has to know

/** The CRC-32 of bytes, as zip archives have it. */
export function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ TABLE[(crc ^ byte) & 0xff];
  return (crc ^ 0xffffffff) >>> 0;
}

/**
 * An archive of files. Contents that are Blobs are read one at a time.
 *
 * @param {[string, Blob | string][]} files names and contents. @param {Date} date of all files.
 * @returns {Promise<Blob>}
 * Raises an Error above 4 GB or 65535 files, which need another form of archive.
 * Source: PKWARE, APPNOTE.TXT 6.3, sections 4.3.7, 4.3.12, 4.3.16.
 */
export async function zip(files, date = new Date()) {
  if (files.length > MOST_FILES) throw new Error(`${files.length} files are too many for one zip, at most ${MOST_FILES}`);
  const time = (date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1);
  const day = (Math.max(date.getFullYear() - 1980, 0) << 9) | ((date.getMonth() + 1) << 5) | date.getDate();
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [name, content] of files) {
    const encoded = new TextEncoder().encode(name);
    const blob = new Blob([content]);
    const crc = crc32(new Uint8Array(await blob.arrayBuffer()));
    const common = [[2, VERSION], [2, UTF8], [2, 0], [2, time], [2, day], [4, crc], [4, blob.size], [4, blob.size], [2, encoded.length], [2, 0]];
    const header = record([4, 0x04034b50], ...common);
    directory.push(record([4, 0x02014b50], [2, VERSION], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), encoded);
    parts.push(header, encoded, blob);
    offset += header.length + encoded.length + blob.size;
    if (offset > MOST_BYTES) throw new Error("the images have more than 4 GB, too much for one zip");
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = record([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** Little-endian numbers one after another, each given as [bytes, value]. */
function record(...numbers) {
  return Uint8Array.from(numbers.flatMap(([bytes, value]) => Array.from({ length: bytes }, (_, i) => (value >>> (8 * i)) & 0xff)));
}
