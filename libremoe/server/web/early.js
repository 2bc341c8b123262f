// Before anything is drawn: the theme and the language that were chosen, so that nothing flashes.
"use strict";
(() => {
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem("libremoe") || "{}") || {}; } catch { /* storage is off, or not ours */ }
  const root = document.documentElement;
  if (kept.theme === "dark" || kept.theme === "light") root.dataset.theme = kept.theme;
  root.lang = kept.language === "fr" || kept.language === "en" ? kept.language
    : (navigator.language || "en").toLowerCase().startsWith("fr") ? "fr" : "en";
  if (kept.sidebar === false) root.dataset.sidebar = "closed";
})();
