# Validation loss against predicted time on three networks. Called by dev/runs/plot.sh with data
# (a block per network and pattern), title, note, and patterns with their colours, dashes, points.
n = words(patterns)
array network[3] = ['0.1 ms per hop, 10 Gbit/s', '5 ms per hop, 1 Gbit/s', \
    '20 ms per hop, 0.1 Gbit/s']
set grid lc rgb '#cccccc' lw 0.7 dt 1
set border 3 lc rgb '#444444'
set tics nomirror
set format x '%g'
set xlabel 'predicted seconds of training'
stats data using 1 nooutput # before ranges are set: they would leave points out
set xrange [STATS_min * 0.8:STATS_max * 1.2]
stats data using 2 nooutput
gap = 0.03 * (STATS_max - STATS_min)
set yrange [STATS_min - gap:STATS_max + gap]
set logscale x
set label 1 title at screen 0.5, 0.965 center font ',16'
set label 2 note at screen 0.5, 0.92 center tc rgb '#444444'
set multiplot
set tmargin at screen 0.83
set bmargin at screen 0.12
do for [k=0:2] {
    set lmargin at screen 0.06 + k * 0.287
    set rmargin at screen 0.06 + k * 0.287 + 0.265
    set title network[k+1]
    if (k == 0) {
        set ylabel 'validation loss (nats per token)'
    } else {
        unset ylabel
        set format y ''
        unset label 1
        unset label 2
    }
    set key off
    if (k == 2) {
        set key on at screen 0.995, screen 0.83 right top title 'pattern' left
        set key reverse Left samplen 2.5
    }
    plot for [i=1:n] data index k*n+i-1 using 1:2 with linespoints lw 2 ps 1 \
    lc rgb word(colours, i) dt int(word(dashes, i)) pt int(word(points, i)) title word(patterns, i)
}
unset multiplot
