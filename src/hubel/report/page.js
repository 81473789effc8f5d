// What moves on the page. Everything can be read without it; nothing here reaches outside this file.
(() => {
  "use strict";
  document.documentElement.classList.add("scripted");
  const read = (id) => { const e = document.getElementById(id); return e && JSON.parse(e.textContent); };
  const fixed = (x, places) => { const t = x.toFixed(places); return (Number(t) === 0 ? t.replace("-", "") : t).replace("-", "\u2212"); };
  const press = (buttons, chosen) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === chosen)));

  // A group of buttons is one stop of the Tab key; arrows, Home and End move inside it and choose.
  const roving = (group) => {
    const buttons = [...group.querySelectorAll("button")];
    const settle = () => {
      const on = buttons.find((b) => b.getAttribute("aria-pressed") === "true") || buttons[0];
      buttons.forEach((b) => { b.tabIndex = b === on ? 0 : -1; });
    };
    group.addEventListener("keydown", (event) => {
      const at = buttons.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      const next = buttons[(to + buttons.length) % buttons.length];
      next.focus(); next.click();
    });
    group.addEventListener("click", () => settle());
    settle();
    return settle;
  };

  // How one number is made, anywhere in the map.
  const one = read("one-number-data");
  if (one) {
    const floats = ({ f4 }) => new Float32Array(Uint8Array.from(atob(f4), (c) => c.charCodeAt(0)).buffer);
    const input = floats(one.input), weight = floats(one.weight), bias = floats(one.bias), maps = floats(one.maps);
    const [, IH, IW] = one.input.shape, [, , kh, kw] = one.weight.shape, [, H, W] = one.maps.shape;
    const [sh, sw] = one.stride, [dh, dw] = one.dilation;
    let { kernel, row, column } = one;
    const room = document.querySelector("#one-number .workbench");
    const out = (name) => room.querySelector(`[data-out=${name}]`);
    const stage = (name) => room.querySelector(`[data-stage=${name}]`);
    const peak = (a) => a.reduce((m, v) => Math.max(m, Math.abs(v)), 1e-12);
    const mapPeak = peak(maps), buttons = [...room.querySelectorAll("[data-kernel]")];
    const paint = (name, values) => {
      const limit = peak(values), cells = room.querySelectorAll(`[data-grid=${name}] td`);
      values.forEach((v, i) => {
        const share = Math.abs(v) / limit;
        cells[i].textContent = fixed(v, 2);
        cells[i].style.background = share > 0.004 ? `rgba(${v > 0 ? "213,94,0" : "0,114,178"},${(0.75 * share).toFixed(2)})` : "";
      });
    };
    const frame = (name, left, top, width, height, w, h) => {
      const style = stage(name).querySelector(".frame").style;
      style.left = `${100 * left / w}%`; style.top = `${100 * top / h}%`;
      style.width = `${100 * width / w}%`; style.height = `${100 * height / h}%`;
    };
    const canvas = document.createElement("canvas");
    canvas.width = W; canvas.height = H; canvas.setAttribute("aria-hidden", "true");
    const drawMap = () => {
      if (!canvas.isConnected) { stage("map").querySelector("img").after(canvas); stage("map").querySelector("img").style.visibility = "hidden"; }
      const context = canvas.getContext("2d"), pixels = context.createImageData(W, H);
      for (let i = 0; i < H * W; i++) {
        const v = maps[kernel * H * W + i];
        pixels.data.set([...(v > 0 ? [213, 94, 0] : [0, 114, 178]), Math.round(255 * Math.abs(v) / mapPeak)], 4 * i);
      }
      context.putImageData(pixels, 0, 0);
    };
    const show = () => {
      const patch = [], taps = [], products = [];
      for (let i = 0; i < kh; i++) for (let j = 0; j < kw; j++) {
        patch.push(input[(row * sh + i * dh) * IW + column * sw + j * dw]);
        taps.push(weight[(kernel * kh + i) * kw + j]);
        products.push(patch.at(-1) * taps.at(-1));
      }
      paint("patch", patch); paint("kernel", taps); paint("products", products);
      const sum = products.reduce((a, b) => a + b, 0), value = sum + bias[kernel], there = maps[(kernel * H + row) * W + column];
      for (const [name, v] of Object.entries({ sum, bias: bias[kernel], value, map: there })) out(name).textContent = fixed(v, 6);
      const off = Math.abs(value - there), same = off <= 1e-5 * Math.max(1, Math.abs(there));
      out("note").textContent = `${same ? "The same number" : "Not the same number"}: they differ by ${off === 0 ? "0" : off.toExponential(1)}, at row ${row}, column ${column} of ${one.layer}:${kernel}.`;
      frame("input", column * sw, row * sh, (kw - 1) * dw + 1, (kh - 1) * dh + 1, IW, IH);
      frame("map", column, row, 1, 1, W, H);
      room.querySelector("[data-title=map]").textContent = `map of ${one.layer}:${kernel}`;
      room.querySelector("[data-grid=kernel] caption").textContent = `kernel ${one.layer}:${kernel}`;
    };
    const clamp = (v, n) => Math.max(0, Math.min(n - 1, v));
    const pad = stage("map");
    pad.tabIndex = 0; pad.setAttribute("role", "application");
    pad.setAttribute("aria-label", "Map: arrow keys move the place whose number is made");
    const point = (event) => {
      const box = pad.getBoundingClientRect();
      column = clamp(Math.floor((event.clientX - box.left) / box.width * W), W);
      row = clamp(Math.floor((event.clientY - box.top) / box.height * H), H);
      show();
    };
    pad.addEventListener("pointerdown", (event) => { point(event); pad.setPointerCapture(event.pointerId); });
    pad.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
    pad.style.touchAction = "none";
    pad.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      row = clamp(row + step[0], H); column = clamp(column + step[1], W);
      show();
    });
    buttons.forEach((b) => b.addEventListener("click", () => { kernel = Number(b.dataset.kernel); press(buttons, b); drawMap(); show(); }));
    room.querySelectorAll(".choices").forEach(roving);
  }

  // Remove one kernel: the scores of the images with and without it.
  const change = read("ablation-data");
  if (change) {
    const room = document.querySelector("[data-workbench=ablation]");
    const buttons = [...room.querySelectorAll("[data-remove]")];
    const [lo, hi] = change.range, at = (v) => 100 * (v - lo) / Math.max(hi - lo, 1e-9);
    const best = (a) => a.indexOf(Math.max(...a));
    const show = (target) => {
      const k = change.targets.indexOf(target);
      room.querySelector("[data-out=removed]").textContent = target;
      room.querySelectorAll("[data-image]").forEach((card) => {
        const i = Number(card.dataset.image), before = change.whole[i], after = change.after[k][i];
        card.querySelectorAll("[data-class]").forEach((line) => {
          const c = Number(line.dataset.class), a = at(before[c]), b = at(after[c]);
          line.querySelector(".dot.after").style.left = `${b}%`;
          const move = line.querySelector(".move").style;
          move.left = `${Math.min(a, b)}%`; move.width = `${Math.abs(a - b)}%`;
          line.lastElementChild.textContent = fixed(after[c], 1);
        });
        const was = change.classes[best(before)], now = change.classes[best(after)];
        const bold = (text) => { const b = document.createElement("b"); b.textContent = text; return b; };
        const verdict = card.querySelector("[data-out=verdict]");
        if (was === now) verdict.replaceChildren("It answers ", bold(was), ", as before.");
        else verdict.replaceChildren("It answered ", bold(was), "; now it answers ", bold(now), ".");
      });
    };
    const groups = [...room.querySelectorAll(".choices")], settle = groups.map(roving);
    buttons.forEach((b) => b.addEventListener("click", () => { press(buttons, b); settle.forEach((s) => s()); show(b.dataset.remove); }));
  }
})();
