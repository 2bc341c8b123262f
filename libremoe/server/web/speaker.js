// What a screen reader is told of an answer on its way: each finished sentence once, not the whole text again and again.

const EVERY_MS = 1500;
const MAX_PIECE = 600;

export class Speaker {
  constructor(el) {
    this.el = el;
    this.waiting = "";
    this.timer = 0;
  }

  begin(text) {
    this.waiting = "";
    clearTimeout(this.timer);
    this.timer = 0;
    this.say(text);
  }

  say(text) { this.el.textContent = text; }

  more(text) {
    this.waiting += text;
    this.timer ||= setTimeout(() => { this.timer = 0; this.sentences(); }, EVERY_MS);
  }

  /** Says what is complete, keeps the rest. */
  sentences() {
    const end = Math.max(...[". ", "! ", "? ", "\n"].map((mark) => this.waiting.lastIndexOf(mark)));
    const cut = end >= 0 ? end + 1 : this.waiting.length > MAX_PIECE ? this.waiting.length : 0;
    if (!cut) return;
    this.say(plain(this.waiting.slice(0, cut)));
    this.waiting = this.waiting.slice(cut);
  }

  end(text) {
    clearTimeout(this.timer);
    this.timer = 0;
    this.say(`${plain(this.waiting)} ${text}`.trim());
    this.waiting = "";
  }
}

/** Without the marks of Markdown, which nobody wants to hear. */
const plain = (text) => text.replace(/[*_`#>|~]+/g, " ").replace(/\s+/g, " ").trim();
