/**
 * The links and the code in a message's content; everything else in it is text.
 *
 * Rules, which `spans.py` of the integrations has too; one table of cases tests both:
 * 1. Code stands between two runs of equally many backticks, within a line; from three backticks on, over several lines.
 *    The next run of that length closes it. The backticks are not part of it, nor is code that is blank.
 * 2. A link begins with `http://` or `https://`, in any case, where no ASCII letter or digit is before it, and a host
 *    follows. It ends before a space, a control, format or bidi character, a quotation mark, a bracket that an address
 *    cannot hold, or the punctuation of East Asian sentences.
 * 3. Punctuation at its end, and a closing bracket that was not opened within it, belong to the sentence around it.
 *
 * The work grows with the length of the content, whatever is in it.
 */

const OUTSIDE =
  '\\0- \\x7f-\\xa0"<>\\\\^`{|}\\xab\\xad\\xbb\\u061c\\u1680\\u180e\\u2000-\\u200f\\u201c-\\u201f\\u2028-\\u202f' +
  "\\u2039\\u203a\\u205f-\\u206f\\u3000-\\u3003\\u3008-\\u3011\\u3014-\\u301f\\ud800-\\udfff\\ufe00-\\ufe0f\\ufeff" +
  "\\uff01\\uff08\\uff09\\uff0c\\uff1a\\uff1b\\uff1f\\ufff9-\\uffff";
/** A host is a name, in any script, or an address in brackets. */
const LINK = new RegExp(
  `(?<![A-Za-z0-9])[Hh][Tt][Tt][Pp][Ss]?://(?:\\[[0-9A-Fa-f:.]+\\]|(?![!-/:-@\\[-\`{-~])[^${OUTSIDE}])[^${OUTSIDE}]*`,
  "gu",
);
const ENDINGS = ".,:;!?'*\u2019\u2026";
const OPENING = { ")": "(", "]": "[" };

/**
 * @param {string} content
 * @returns {["text" | "link" | "code", string][]} in their order; neighbouring texts are one
 */
export function spans(content) {
  const found = [];
  const add = (kind, part) => {
    if (kind === "text" && found.at(-1)?.[0] === "text") found.at(-1)[1] += part;
    else if (part !== "") found.push([kind, part]);
  };
  let begin = 0;
  for (const { start, end, code } of codes(content)) {
    addLinks(content.slice(begin, start), add);
    add("code", code);
    begin = end;
  }
  addLinks(content.slice(begin), add);
  return found;
}

/** Where each code begins and ends, with its backticks, and the code without them. */
function codes(content) {
  const runs = [...content.matchAll(/`+/g)].map((match) => ({ start: match.index, length: match[0].length }));
  // For each run the next one of its length, from the back.
  const last = new Map();
  for (let index = runs.length - 1; index >= 0; index -= 1) {
    runs[index].closing = last.get(runs[index].length);
    last.set(runs[index].length, index);
  }
  const found = [];
  for (let index = 0; index < runs.length; index += 1) {
    const { start, length, closing } = runs[index];
    if (closing === undefined) continue;
    const code = content.slice(start + length, runs[closing].start);
    if (/^[ \t\r\n]*$/.test(code) || (length < 3 && code.includes("\n"))) continue;
    found.push({ start, end: runs[closing].start + length, code });
    index = closing;
  }
  return found;
}

function addLinks(text, add) {
  let begin = 0;
  for (const match of text.matchAll(LINK)) {
    const link = withoutEnding(match[0]);
    add("text", text.slice(begin, match.index));
    add("link", link);
    begin = match.index + link.length;
  }
  add("text", text.slice(begin));
}

function withoutEnding(link) {
  const count = (character) => link.split(character).length - 1;
  const unopened = {};
  for (const [close, open] of Object.entries(OPENING)) unopened[close] = count(close) - count(open);
  for (let end = link.length; ; end -= 1) {
    const character = link[end - 1];
    if (unopened[character] > 0) unopened[character] -= 1;
    else if (!ENDINGS.includes(character)) return link.slice(0, end);
  }
}
