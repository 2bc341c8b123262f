// Answers on their way: the events of a stream, put into the page as they come.

import { $ } from "./dom.js";
import * as api from "./api.js";
import { updateAtlas } from "./atlas.js";
import * as sidebar from "./sidebar.js";
import { Speaker } from "./speaker.js";
import { articleOf, paintAround, paintBody, paintThread, paintTurn } from "./thread.js";
import { t } from "./words.js";

const RETRIES = 8;
export const seen = new Map(); // turn id -> its tokens and their experts, as long as the page lives

/** follow(tree, stream) follows a stream of events to its end; when the connection breaks, it takes it up again: the server
    goes on writing. view: what is open; the rest is the page's. */
export function follower(view, { buttons, reopen, stick, toEnd }) {
  const speaker = new Speaker($("#spoken"));

  async function follow(tree, stream) {
    const way = { tree, turn: null, live: null };
    for (let tries = 0; ; tries += 1) {
      try {
        for await (const event of stream) { apply(way, event); tries = 0; }
        if (!way.turn || way.turn.state !== "writing") return;
      } catch (error) {
        if (error instanceof api.Refused && (!way.turn || error.status !== 404)) { drop(way); throw error; }
        if (error instanceof api.Refused) { drop(way); await reopen(tree); return; } // it ended meanwhile
        if (!way.turn && tries >= 1) throw error;
      }
      if (!way.turn || tries >= RETRIES) { drop(way); throw new Error(t("no_server")); }
      await new Promise((wake) => setTimeout(wake, Math.min(250 * 2 ** tries, 5000)));
      if (way.live) Object.assign(way.live, { text: "", tokens: [], deltas: 0, calls: new Map(), spoken: false });
      stream = api.events("GET", `/api/turns/${way.turn.id}/events`);
    }
  }

  function drop(way) {
    if (way.turn) view.live.delete(way.turn.id);
    buttons();
  }

  const newLive = (tree) => ({ tree, text: "", tokens: [], deltas: 0, calls: new Map(), began: performance.now(), first: 0, searching: null, sources: null });

  function apply(way, event) {
    const { tree } = way;
    const here = view.tree === tree;
    const turn = way.turn;
    switch (event.type) {
      case "turn": {
        const made = tree.put(event.turn);
        tree.leaf = made.id;
        if (made.role === "assistant") {
          way.turn = made;
          way.live ??= newLive(tree);
          view.live.set(made.id, way.live);
          if (here) speaker.begin(t("writing"));
        } else sidebar.refresh().catch(() => {});
        if (here) { paintThread(view); toEnd(true); buttons(); }
        return;
      }
      case "delta":
        way.live.first ||= performance.now();
        way.live.text += event.text;
        way.live.deltas += 1;
        if (here) speaker.more(event.text);
        return;
      case "html":
        turn.html = event.html;
        if (here) { stick(() => { if ($(".doing", articleOf(turn.id) ?? document.body)) paintAround(turn, view); paintBody(turn, view); }); }
        return;
      case "searching": way.live.searching = event.query; break;
      case "sources": way.live.sources = event.sources; break;
      case "call": way.live.calls.set(event.call.id, { call: event.call, state: "running", text: "" }); break;
      case "approve":
        way.live.calls.set(event.call.id, { call: event.call, state: "waiting", text: "", always: event.always });
        if (here) speaker.say(`${t("call_asks")}: ${event.call.name}`);
        break;
      case "call_done": {
        const call = way.live.calls.get(event.call_id);
        if (call) Object.assign(call, { state: event.ok ? "done" : "failed", text: event.text });
        break;
      }
      case "experts":
        way.live.first ||= performance.now();
        way.live.tokens.push({ layers: event.layers, text: event.text ?? "" });
        if (here) updateAtlas(turn, way.live.tokens);
        return;
      case "stats": {
        const { type, ...stats } = event;
        turn.details = { ...turn.details, stats };
        break;
      }
      case "error":
        if (!turn) throw new api.Refused(500, String(event.message));
        turn.details = { ...turn.details, error: event.message };
        if (here) speaker.say(t("failed_why", { why: event.message }));
        return;
      case "done":
        seen.set(turn.id, way.live.tokens);
        view.live.delete(turn.id);
        way.turn = tree.put(event.turn);
        if (here) {
          if (way.turn.details.sources?.length) paintTurn(way.turn, view); // the answer stays where it is read; its sources unfold below
          else stick(() => paintTurn(way.turn, view));
          updateAtlas(way.turn, way.live.tokens);
          speaker.end(t(way.turn.state === "done" ? "finished" : way.turn.state === "stopped" ? "stopped" : "failed"));
        }
        buttons();
        sidebar.refresh().catch(() => {});
        return;
      default: return; // a newer server may say more
    }
    if (here) stick(() => paintAround(turn, view));
  }

  return follow;
}
